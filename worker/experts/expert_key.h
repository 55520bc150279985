#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_KEY_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_KEY_H_

#include <cstdint>

namespace caravan {

/// One routed expert of a model.
struct ExpertKey {
  int32_t layer = 0;  // as the model counts; the layer of multi-token prediction is the last
  int32_t expert = 0;
  friend bool operator==(const ExpertKey&, const ExpertKey&) = default;
  friend auto operator<=>(const ExpertKey&, const ExpertKey&) = default;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_KEY_H_
