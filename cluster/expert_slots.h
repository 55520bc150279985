#ifndef CARAVAN_CLUSTER_EXPERT_SLOTS_H_
#define CARAVAN_CLUSTER_EXPERT_SLOTS_H_

// How the memory for experts is used whose stage leaves some on disk: what the store does
// (worker/experts/expert_store.h), and what predictions count with.

#include <algorithm>
#include <cstdint>

namespace caravan {

/// Of `slots` for `num_experts` experts, those through which experts pass that are not kept: enough
/// for some to be computed while the next are read, and little against the others, which keep
/// experts. None where all experts have a slot.
inline int64_t PassedExpertSlots(int64_t slots, int64_t num_experts) {
  if (slots >= num_experts) return 0;
  return std::clamp<int64_t>(slots / 4, 1, 32);
}

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_EXPERT_SLOTS_H_
