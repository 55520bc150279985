#ifndef CARAVAN_KERNELS_CPU_ROUTER_H_
#define CARAVAN_KERNELS_CPU_ROUTER_H_

// The choice of experts on the CPU: see Backend::Route. A NaN score is chosen last; ids are always
// distinct and in range.

#include <cstdint>
#include <vector>

#include "kernels/backend.h"

namespace caravan {

class Router {
 public:
  /// Routes one row: logits [n_routed_experts]; expert_ids, weights [num_experts_per_tok].
  void Route(const RouterShape& shape, const float* logits, const float* bias, int32_t* expert_ids,
             float* weights);

 private:
  // Kept between rows only for their memory.
  std::vector<float> scores_;      // [n_routed_experts], unbiased
  std::vector<float> keys_;        // [n_routed_experts], what the choice goes by
  std::vector<float> group_keys_;  // [n_group]
  std::vector<int32_t> groups_;    // [topk_group]
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_ROUTER_H_
