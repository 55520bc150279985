#include "kernels/cuda/block_product.cuh"

namespace caravan {

BlockProductKernels ProductKernelsOfQ4_K() { return BlockKernels<CudaQ4_K>(); }

}  // namespace caravan
