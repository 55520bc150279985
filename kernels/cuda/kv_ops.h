#ifndef CARAVAN_KERNELS_CUDA_KV_OPS_H_
#define CARAVAN_KERNELS_CUDA_KV_OPS_H_

// Rotation of queries and filling of the compressed cache, as Backend::RotateQueries and
// Backend::WriteKv. Every pointer is into device memory. Launchers queue on the stream, allocate
// nothing and wait for nothing. Errors of all: those of a launch (cuda_error.h).

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/sequence_table.h"

namespace caravan {

/// q [rows of the batch, num_heads * q_head_dim], in place.
absl::Status LaunchRotateQueries(const CudaStream& stream, const MlaShape& shape,
                                 const RopeTable& rope, const SequenceRowsView& rows, float* q);

/// kv_a [rows of the batch, kv_width]. The latent is normed as LaunchRmsNorm does; rows are stored
/// to the bit as EncodeKvRow stores the same values.
absl::Status LaunchWriteKv(const CudaStream& stream, const MlaShape& shape, const RopeTable& rope,
                           const float* norm_weight, float eps, const SequenceRowsView& rows,
                           const KvLayout& kv, const float* kv_a);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_KV_OPS_H_
