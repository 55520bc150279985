#include "kernels/cuda/cuda_scratch.h"

#include <algorithm>

#include "kernels/cuda/activations.h"
#include "kernels/cuda/expert_routing.h"
#include "kernels/cuda/logit_summary.h"
#include "kernels/cuda/mla_attention.h"
#include "kernels/cuda/sequence_table.h"
#include "kernels/expert_batches.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {

CudaFfnSizes SizesFor(const CudaFfnLimits& limits) {
  const int64_t shares = limits.max_rows * limits.max_chosen;
  const int64_t inner =
      std::max(shares * limits.expert_inter, limits.max_rows * limits.dense_inter);
  const auto inner_blocks = std::max(ActivationBytes(shares, limits.expert_inter),
                                     ActivationBytes(limits.max_rows, limits.dense_inter));
  // Products that wait for their turn are kept whole; those of more shares, a few columns at a
  // time.
  const int64_t products = std::min(shares, kMaxUnorderedShares) * limits.hidden;
  return {.x_blocks = ActivationBytes(limits.max_rows, limits.hidden),
          .routing = RoutingBytes(shares),
          .inner = std::max<int64_t>(inner * static_cast<int64_t>(sizeof(float)), inner_blocks),
          .work = static_cast<int64_t>(sizeof(float)) *
                  std::max({2 * inner, products, shares * kTileRows})};
}

int64_t CudaAttentionRowBytes(const MlaShape& shape, int64_t positions) {
  const int64_t last = positions - 1;
  const int64_t splits =
      std::max(AttentionSplits(last), AttentionSplits(std::min(last, kShortSequence - 1)));
  return shape.num_heads * (5 * shape.kv_width() + shape.kv_lora_rank * splits) *
         static_cast<int64_t>(sizeof(float));
}

int64_t CudaScratchBytes(const CudaBackendLimits& limits) {
  const CudaFfnSizes ffn = SizesFor(limits.ffn);
  return ffn.x_blocks + ffn.routing + ffn.inner + ffn.work +
         ActivationBytes(limits.ffn.max_rows, limits.max_cols) +
         limits.ffn.max_rows * static_cast<int64_t>(sizeof(RowPlace)) +
         limits.max_kv_blocks * static_cast<int64_t>(sizeof(std::byte*)) +
         LogitScratchBytes(limits.max_logit_rows, limits.max_vocab) +
         limits.attention_scratch_bytes + kCudaGraphBytes;
}

}  // namespace caravan
