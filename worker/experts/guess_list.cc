#include "worker/experts/guess_list.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "base/check.h"

namespace caravan {

GuessList::GuessList(int experts_per_layer) : experts_per_layer_(experts_per_layer) {
  tally_.reserve(static_cast<size_t>(experts_per_layer));
  order_.reserve(static_cast<size_t>(experts_per_layer));
}

void GuessList::Clear() {
  layer_ = -1;
  order_.clear();
  next_ = 0;
}

void GuessList::SetAll(int layer) {
  Clear();
  layer_ = layer;
  order_.resize(static_cast<size_t>(experts_per_layer_));
  std::iota(order_.begin(), order_.end(), 0);
}

void GuessList::SetLikely(int layer, absl::Span<const int32_t> expert_ids,
                          absl::Span<const float> weights) {
  CARAVAN_CHECK(expert_ids.size() == weights.size());
  Clear();
  layer_ = layer;
  tally_.assign(static_cast<size_t>(experts_per_layer_), Likely{});
  for (size_t i = 0; i < expert_ids.size(); ++i) {
    CARAVAN_CHECK(expert_ids[i] >= 0 && expert_ids[i] < experts_per_layer_);
    Likely& likely = tally_[static_cast<size_t>(expert_ids[i])];
    likely.expert = expert_ids[i];
    ++likely.rows;
    likely.weight += weights[i];
  }
  std::sort(tally_.begin(), tally_.end(), [](const Likely& a, const Likely& b) {
    return std::tuple(-a.rows, -a.weight, a.expert) < std::tuple(-b.rows, -b.weight, b.expert);
  });
  for (const Likely& likely : tally_) {
    if (likely.rows > 0) order_.push_back(likely.expert);
  }
}

std::optional<ExpertKey> GuessList::Next() {
  if (next_ == order_.size()) return std::nullopt;
  return ExpertKey{layer_, order_[next_++]};
}

}  // namespace caravan
