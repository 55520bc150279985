#ifndef CARAVAN_KERNELS_CUDA_ATTENTION_LAUNCHES_H_
#define CARAVAN_KERNELS_CUDA_ATTENTION_LAUNCHES_H_

// The kernels of mla_attention.h, one launcher each. All queue on the stream; errors are those of a
// launch (cuda_error.h).

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/sequence_table.h"

namespace caravan {

/// Rows that go through the three kernels together, and their scratch.
struct AttentionBatch {
  MlaShape shape;
  KvLayout kv;
  const RowPlace* places = nullptr;  // [num_rows]
  int64_t num_rows = 0;
  std::byte* const* blocks = nullptr;
  int64_t block_offset = 0;  // as SequenceRowsView's
  int64_t max_splits = 0;    // of any row
  bool tensor_cores = false;

  // [num_rows, num_heads, kv_width]: f32, or binary16 for tensor cores.
  void* queries = nullptr;
  // [num_rows, num_heads]: what a product of a query and a cached row is multiplied with to be a
  // score in base 2.
  float* score_scales = nullptr;
  // Of each split: slot (row * max_splits + split) * num_heads + head.
  float* sums = nullptr;    // [slots, kv_lora_rank]
  float* maxima = nullptr;  // [slots]
  float* totals = nullptr;  // [slots]

  int64_t num_slots() const { return num_rows * max_splits * shape.num_heads; }
};

/// Fills queries and score_scales. q [rows of the batch, num_heads * q_head_dim].
absl::Status LaunchLatentQueries(const CudaStream& stream, const AttentionBatch& batch,
                                 const Matrix& kv_b, const float* q);

/// Fills sums, maxima and totals of the splits that each row has. One in f32, one on tensor cores.
absl::Status LaunchAttendF32(const CudaStream& stream, const AttentionBatch& batch);
absl::Status LaunchAttendMma(const CudaStream& stream, const AttentionBatch& batch);
/// The latter's for many heads on a card of 9.0.
absl::Status LaunchAttendWgmma(const CudaStream& stream, const AttentionBatch& batch);

/// Combines the splits. out [rows of the batch, num_heads * v_head_dim].
absl::Status LaunchValueProjection(const CudaStream& stream, const AttentionBatch& batch,
                                   const Matrix& kv_b, float* out);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_ATTENTION_LAUNCHES_H_
