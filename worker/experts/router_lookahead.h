#ifndef CARAVAN_WORKER_EXPERTS_ROUTER_LOOKAHEAD_H_
#define CARAVAN_WORKER_EXPERTS_ROUTER_LOOKAHEAD_H_

// What the next layer's router is likely to choose, before the rows get there: it is run on what
// they are now. A layer adds little to the residual stream, so most of its choices come true
// (docs/performance.md has how many). They are hints, which nothing but reads follows.
//
// Used by one thread at a time.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/memory.h"
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

  /// Both [num_rows, num_experts_per_tok], as Backend::Route leaves them, for the host to read;
  /// good until the next call.
  struct Choice {
    absl::Span<const int32_t> expert_ids;
    absl::Span<const float> weights;
  };

  /// Takes all of its memory: as many bytes as LookaheadBytes (model/step_memory.h) says. Errors:
  /// as Memory::Allocate of the backend's.
  static absl::StatusOr<RouterLookahead> Create(const ModelConfig& config, Backend& backend);

  int64_t num_bytes() const;

  /// hidden + delta [num_rows, hidden_size]: the residual stream, as far as it is known, at the end
  /// of the layer before. REQUIRES: `layer` has a router; 1 <= num_rows <= kMaxRows.
  /// Errors: as Memory::CopyOut.
  absl::StatusOr<Choice> Choose(const LayerWeights& layer, const float* hidden, const float* delta,
                                int64_t num_rows);

 private:
  RouterLookahead(const ModelConfig& config, Backend& backend)
      : config_(&config), backend_(&backend) {}

  const ModelConfig* config_;
  Backend* backend_;
  Array normed_;      // f32 [kMaxRows, hidden_size]
  Array logits_;      // f32 [kMaxRows, n_routed_experts]
  Array expert_ids_;  // i32 [kMaxRows, num_experts_per_tok]
  Array weights_;     // f32 [kMaxRows, num_experts_per_tok]
  // The last two, where the host cannot read them there.
  std::vector<int32_t> host_ids_;
  std::vector<float> host_weights_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_ROUTER_LOOKAHEAD_H_
