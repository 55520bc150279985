#include "kernels/cuda/block_product.cuh"

namespace caravan {

BlockProductKernels ProductKernelsOfQ8_0() { return BlockKernels<CudaQ8_0>(); }

}  // namespace caravan
