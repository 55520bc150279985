#include "kernels/cuda/block_product.cuh"

namespace caravan {

BlockProductKernels ProductKernelsOfQ5_K() { return BlockKernels<CudaQ5_K>(); }

}  // namespace caravan
