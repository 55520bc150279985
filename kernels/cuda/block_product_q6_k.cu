#include "kernels/cuda/block_product.cuh"

namespace caravan {

BlockProductKernels ProductKernelsOfQ6_K() { return BlockKernels<CudaQ6_K>(); }

}  // namespace caravan
