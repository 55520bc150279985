#include "kernels/cuda/block_product.cuh"

namespace caravan {

BlockProductKernels ProductKernelsOfQ4_0() { return BlockKernels<CudaQ4_0>(); }

}  // namespace caravan
