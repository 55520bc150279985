#ifndef CARAVAN_WORKER_EXPERTS_ROUTING_OBSERVER_H_
#define CARAVAN_WORKER_EXPERTS_ROUTING_OBSERVER_H_

// Who wants to know which experts the routers choose.

#include <cstdint>

#include "absl/types/span.h"

namespace caravan {

class RoutingObserver {
 public:
  virtual ~RoutingObserver() = default;

  /// Called for each layer with experts that a step goes through, in that order: where the layer
  /// does not ascend, another step has begun. On the thread that computes, before the experts do.
  /// expert_ids, weights: [num_rows, num_experts_per_tok].
  virtual void OnRouting(int layer, int64_t num_rows, absl::Span<const int32_t> expert_ids,
                         absl::Span<const float> weights) = 0;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_ROUTING_OBSERVER_H_
