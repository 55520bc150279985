#ifndef CARAVAN_KERNELS_CUDA_MLA_ATTENTION_H_
#define CARAVAN_KERNELS_CUDA_MLA_ATTENTION_H_

// Backend::MlaAttention on the device, in the absorbed form (DeepSeek-V2, arXiv:2405.04434, section
// 2.1.2): three kernels, one after another, for as many rows at a time as the scratch has room for.
//
//   latent_queries   q' = W_UK^T q_nope, beside the rope part
//   attend           for a row, some of its heads and a split of the positions, the softmax's
//                    maximum, total and weighted sum of latents; a CTA's heads share each reading
//                    of the cache
//   value_projection out = W_UV sum over the splits, each by what it counts for
//
// Splits of AttentionSplit positions are counted from position 0 and combined in ascending order;
// within one, softmax is online over tiles. So a row's bits depend on its position and its cache
// alone: not on the batch, nor on how the prompt was cut.
//
// Two kinds of kernel attend. On cards from 8.0 on, R1's shape (kv_lora_rank 512, rope 64) with a
// cache of F16 or Q8_0 goes through tensor cores: q' (by a power of two brought to [1, 2)), the
// cached values and the softmax's weights are binary16, sums are f32. Of these, many heads at a
// time go through instructions of 9.0's own there (attend_wgmma.cu), which give the same bits. All
// else is f32 throughout; the products with kv_b are, on tensor cores, sums of products of parts of
// their values (MultiplySplit, mma.cuh).

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/sequence_table.h"

namespace caravan {

/// Positions below this have shorter splits.
inline constexpr int64_t kShortSequence = 2048;
/// Positions that one CTA goes through for a row at `position`. More of them make fewer sums to
/// combine (2 KiB a head), fewer keep more multiprocessors busy with a few sequences: of short ones
/// there are few sums in any case.
constexpr int AttentionSplit(int64_t position) { return position < kShortSequence ? 512 : 1024; }
/// How many such a row has.
constexpr int64_t AttentionSplits(int64_t position) {
  return position / AttentionSplit(position) + 1;
}
/// The widest latent that the kernels' registers have room for.
inline constexpr int kMaxLatent = 512;

/// Whether a cache of this format goes through tensor cores on such a card.
bool AttendsWithTensorCores(const MlaShape& shape, DType kv_dtype, int compute_capability);

/// Splits of the row that has the most.
int64_t MostAttentionSplits(absl::Span<const RowPlace> places);

class CudaMlaAttention {
 public:
  /// scratch_bytes: a row needs num_heads * (5 * kv_width + kv_lora_rank * splits) * 4 bytes at
  /// most, R1's at position 163,839 44 MB; with room for more rows they go together.
  /// Errors: ResourceExhausted - no memory on the device.
  static absl::StatusOr<CudaMlaAttention> Create(const CudaDevice& device, int64_t scratch_bytes);

  /// As Backend::MlaAttention; queues on the stream. kv_b of any format and layout. `places`: those
  /// of `rows`, on the host. Blocks of the cache are aligned to 16 bytes.
  /// REQUIRES: kv_lora_rank <= kMaxLatent; the scratch has room for any row.
  /// Errors: those of a launch (cuda_error.h).
  absl::Status Run(const CudaStream& stream, const MlaShape& shape, const Matrix& kv_b,
                   const SequenceRowsView& rows, absl::Span<const RowPlace> places,
                   const KvLayout& kv, const float* q, float* out);

  /// Whether the scratch had room for all rows of the last Run together. What that launched depends
  /// then on nothing of `places` but MostAttentionSplits and the number of rows.
  bool is_one_batch() const { return is_one_batch_; }

 private:
  explicit CudaMlaAttention(DeviceBuffer scratch) : scratch_(std::move(scratch)) {}

  DeviceBuffer scratch_;
  bool is_one_batch_ = true;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_MLA_ATTENTION_H_
