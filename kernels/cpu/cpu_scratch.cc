#include "kernels/cpu/cpu_scratch.h"

#include <algorithm>

#include "kernels/cpu/activation_block.h"
#include "kernels/cpu/expert_ffn.h"
#include "kernels/cpu/mla_attention.h"
#include "kernels/expert_batches.h"

namespace caravan {
namespace {

// Of an activation in a block, rounded up; and of one as it is.
constexpr int64_t kBlockBytes = sizeof(ActivationBlock) / kActivationBlock;
constexpr int64_t kFloatBytes = sizeof(float);

}  // namespace

int64_t CpuScratchBytes(const CpuScratchShape& shape) {
  const MlaShape& mla = shape.mla;
  const int64_t products = shape.max_rows * shape.most_columns * kBlockBytes;
  const int64_t heads = std::max<int64_t>(1, mla.num_heads);
  const int64_t attention_rows =
      std::min(shape.max_rows, std::max<int64_t>(1, kAttentionBatchQueries / heads));
  // A query, and the sum over its values.
  const int64_t attention =
      attention_rows * heads * (mla.kv_width() + mla.kv_lora_rank) * kFloatBytes;
  const int64_t shares = shape.max_rows * shape.experts_per_row;
  const int64_t inter = std::max(std::min(shape.max_rows, kFfnTileRows) * shape.dense_inter,
                                 std::min(shares, kFfnRunShares) * shape.expert_inter);
  // A stage may have networks whose downs take blocks and others whose downs take floats.
  const int64_t ffn =
      shape.max_rows * shape.hidden_size * kBlockBytes + inter * (kBlockBytes + kFloatBytes);
  const int64_t kept = std::min(shares, kMaxUnorderedShares) * shape.hidden_size * kFloatBytes;
  return products + attention + ffn + kept;
}

}  // namespace caravan
