#ifndef CARAVAN_KERNELS_CUDA_CUDA_SCRATCH_H_
#define CARAVAN_KERNELS_CUDA_CUDA_SCRATCH_H_

// What the CUDA backend's scratch takes of a card's memory, from shapes alone: who plans with a
// card counts with it, where no card is and nothing of CUDA was built too. Pure functions.

#include <cstdint>

#include "kernels/backend.h"

namespace caravan {

struct CudaFfnLimits {
  int64_t max_rows = 0;
  int64_t max_chosen = 0;  // experts a row; 0 if there are none
  int64_t hidden = 0;
  int64_t expert_inter = 0;
  int64_t dense_inter = 0;  // the widest of the plain ones
};

/// What the scratch has room for. REQUIRES of every call: no more than that.
struct CudaBackendLimits {
  CudaFfnLimits ffn;           // its max_rows are those of every operation
  int64_t max_cols = 0;        // of any matrix that MatMul takes
  int64_t max_kv_blocks = 0;   // of all sequences of a call
  int64_t max_logit_rows = 0;  // of SummarizeLogits
  int64_t max_vocab = 0;
  int64_t attention_scratch_bytes = int64_t{256} << 20;  // see CudaMlaAttention::Create
};

/// Of CudaExpertFfn, buffer by buffer.
struct CudaFfnSizes {
  int64_t x_blocks = 0;
  int64_t routing = 0;
  int64_t inner = 0;
  int64_t work = 0;
};
CudaFfnSizes SizesFor(const CudaFfnLimits& limits);

/// Of what is kept as CUDA graphs (CudaGraphs), at most: the driver's, beside what is allocated.
inline constexpr int64_t kCudaGraphBytes = int64_t{32} << 20;

/// Of attention for one row at the last of `positions`, at most.
int64_t CudaAttentionRowBytes(const MlaShape& shape, int64_t positions);

/// Of CudaBackend in all, but for what the driver rounds up.
int64_t CudaScratchBytes(const CudaBackendLimits& limits);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_CUDA_SCRATCH_H_
