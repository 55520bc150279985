#include "kernels/cuda/block_product.cuh"

namespace caravan {

BlockProductKernels ProductKernelsOfQ3_K() { return BlockKernels<CudaQ3_K>(); }

}  // namespace caravan
