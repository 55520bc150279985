#include "worker/experts/guess_gate.h"

#include <algorithm>

namespace caravan {
namespace {

double Median(std::array<double, GuessGate::kTrialSteps / 2>& costs) {
  const auto middle = costs.begin() + costs.size() / 2;
  std::nth_element(costs.begin(), middle, costs.end());
  return *middle;
}

}  // namespace

void GuessGate::StepEnded(absl::Duration lost, int64_t brought) {
  if (brought == 0) return;
  if (trying_) {
    const double cost = absl::ToDoubleSeconds(lost) / static_cast<double>(brought);
    (goes_the_other_way() ? other_costs_ : held_costs_)[static_cast<size_t>(steps_ / 2)] = cost;
    if (++steps_ == kTrialSteps) EndTrial();
  } else if (++steps_ == interval_) {
    trying_ = true;
    steps_ = 0;
  }
}

void GuessGate::EndTrial() {
  if (Median(other_costs_) < Median(held_costs_) * (1 - kMargin)) {
    holds_to_guessing_ = !holds_to_guessing_;
    interval_ = kFirstInterval;
  } else {
    interval_ = std::min(2 * interval_, kLastInterval);
  }
  trying_ = false;
  steps_ = 0;
}

}  // namespace caravan
