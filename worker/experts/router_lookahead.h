#ifndef CARAVAN_WORKER_EXPERTS_ROUTER_LOOKAHEAD_H_
#define CARAVAN_WORKER_EXPERTS_ROUTER_LOOKAHEAD_H_

// What the next layer's router is likely to choose, before the rows get there: it is run on what
// they are now. A layer adds little to the residual stream, so most of its choices come true
// (docs/performance.md has how many). They are hints, which nothing but reads follows.
//
// Used by one thread at a time.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "model/model_config.h"
#include "model/step_memory.h"
#include "worker/stage_weights.h"

namespace caravan {

/// Borrows everything.
class RouterLookahead {
 public:
  /// Rows that it takes: the more rows, the nearer they come to all experts, and where they touch
  /// most of them the store knows itself what comes next.
  static constexpr int64_t kMaxRows = kLookaheadRows;

  /// Both [num_rows, num_experts_per_tok], as Backend::Route leaves them; good until the next call.
  struct Choice {
    absl::Span<const int32_t> expert_ids;
    absl::Span<const float> weights;
  };

  /// Takes all of its memory: as many bytes as LookaheadBytes (model/step_memory.h) says.
  RouterLookahead(const ModelConfig& config, Backend& backend);

  int64_t num_bytes() const;

  /// hidden + delta [num_rows, hidden_size]: the residual stream, as far as it is known, at the end
  /// of the layer before. REQUIRES: `layer` has a router; 1 <= num_rows <= kMaxRows.
  Choice Choose(const LayerWeights& layer, const float* hidden, const float* delta,
                int64_t num_rows);

 private:
  const ModelConfig& config_;
  Backend& backend_;
  std::vector<float> normed_;        // [kMaxRows, hidden_size]
  std::vector<float> logits_;        // [kMaxRows, n_routed_experts]
  std::vector<int32_t> expert_ids_;  // [kMaxRows, num_experts_per_tok]
  std::vector<float> weights_;       // the same
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_ROUTER_LOOKAHEAD_H_
