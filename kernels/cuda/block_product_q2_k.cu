#include "kernels/cuda/block_product.cuh"

namespace caravan {

BlockProductKernels ProductKernelsOfQ2_K() { return BlockKernels<CudaQ2_K>(); }

}  // namespace caravan
