#include "kernels/cuda/mla_attention.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/int_math.h"
#include "base/status_macros.h"
#include "kernels/cuda/attention_launches.h"
#include "kernels/kv_rows.h"

namespace caravan {
namespace {

/// Hands out parts of the scratch, each aligned for vector loads.
class ScratchParts {
 public:
  explicit ScratchParts(std::byte* begin) : at_(begin) {}

  std::byte* Take(int64_t bytes) {
    std::byte* const part = at_;
    at_ += RoundUp(bytes, int64_t{256});
    return part;
  }

  /// What the batch takes; sets its pointers. begin: null only counts.
  static int64_t Lay(std::byte* begin, AttentionBatch& batch) {
    ScratchParts parts(begin);
    const int64_t queries = batch.num_rows * batch.shape.num_heads;
    const int64_t floats = sizeof(float);
    batch.queries = parts.Take(queries * batch.shape.kv_width() * floats);
    batch.score_scales = reinterpret_cast<float*>(parts.Take(queries * floats));
    batch.maxima = reinterpret_cast<float*>(parts.Take(batch.num_slots() * floats));
    batch.totals = reinterpret_cast<float*>(parts.Take(batch.num_slots() * floats));
    batch.sums =
        reinterpret_cast<float*>(parts.Take(batch.num_slots() * batch.shape.kv_lora_rank * floats));
    return parts.at_ - begin;
  }

 private:
  std::byte* at_;
};

absl::Status RunBatch(const CudaStream& stream, const AttentionBatch& batch, const Matrix& kv_b,
                      const float* q, float* out) {
  CARAVAN_RETURN_IF_ERROR(LaunchLatentQueries(stream, batch, kv_b, q));
  CARAVAN_RETURN_IF_ERROR(batch.tensor_cores ? LaunchAttendMma(stream, batch)
                                             : LaunchAttendF32(stream, batch));
  return LaunchValueProjection(stream, batch, kv_b, out);
}

}  // namespace

bool AttendsWithTensorCores(const MlaShape& shape, DType kv_dtype, int compute_capability) {
  return compute_capability >= 80 && shape.kv_lora_rank == 512 && shape.qk_rope_head_dim == 64 &&
         kv_dtype != DType::kF32;
}

int64_t MostAttentionSplits(absl::Span<const RowPlace> places) {
  int64_t most = 0;
  for (const RowPlace& place : places) most = std::max(most, AttentionSplits(place.position));
  return most;
}

absl::StatusOr<CudaMlaAttention> CudaMlaAttention::Create(const CudaDevice& device,
                                                          int64_t scratch_bytes) {
  CARAVAN_ASSIGN_OR_RETURN(DeviceBuffer scratch, DeviceBuffer::Create(device, scratch_bytes));
  return CudaMlaAttention(std::move(scratch));
}

absl::Status CudaMlaAttention::Run(const CudaStream& stream, const MlaShape& shape,
                                   const Matrix& kv_b, const SequenceRowsView& rows,
                                   absl::Span<const RowPlace> places, const KvLayout& kv,
                                   const float* q, float* out) {
  CARAVAN_CHECK(shape.kv_lora_rank <= kMaxLatent);
  CARAVAN_CHECK(kv_b.cols == shape.kv_lora_rank);
  CARAVAN_CHECK(kv_b.rows == shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim));
  CARAVAN_CHECK(CheckKvDType(shape, kv.dtype).ok());
  AttentionBatch batch;
  batch.shape = shape;
  batch.kv = kv;
  batch.blocks = rows.blocks;
  batch.block_offset = rows.block_offset;
  batch.tensor_cores =
      AttendsWithTensorCores(shape, kv.dtype, stream.device().compute_capability());
  is_one_batch_ = true;
  for (int64_t first = 0; first < rows.num_rows; first += batch.num_rows) {
    batch.places = rows.places + first;
    batch.num_rows = 0;
    batch.max_splits = 0;
    // As many rows as there is room for.
    while (first + batch.num_rows < rows.num_rows) {
      AttentionBatch longer = batch;
      ++longer.num_rows;
      longer.max_splits =
          std::max(batch.max_splits, AttentionSplits(places[first + batch.num_rows].position));
      if (ScratchParts::Lay(nullptr, longer) > scratch_.bytes()) break;
      batch = longer;
    }
    CARAVAN_CHECK(batch.num_rows > 0);
    is_one_batch_ = batch.num_rows == rows.num_rows;
    ScratchParts::Lay(scratch_.data(), batch);
    CARAVAN_RETURN_IF_ERROR(RunBatch(stream, batch, kv_b, q, out));
  }
  return absl::OkStatus();
}

}  // namespace caravan
