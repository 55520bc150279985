#include "worker/experts/guess_gate.h"

#include <algorithm>

namespace caravan {
namespace {

/// One bit, as good as drawn: the finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable
/// pseudorandom number generators", OOPSLA 2014).
bool Draw(uint64_t number) {
  uint64_t z = (number + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return (z >> 63) != 0;
}

}  // namespace

bool GuessGate::goes_the_other_way() const { return trying_ && Draw(number_); }

void GuessGate::StepEnded(absl::Duration lost, int64_t brought) {
  const bool went_the_other_way = goes_the_other_way();
  ++number_;
  if (brought == 0) {
    if (++idle_steps_ == kIdleSteps) Hold(/*to_guessing=*/false, kFirstInterval);
    return;
  }
  idle_steps_ = 0;
  if (!trying_) {
    trying_ = ++steps_ == interval_;
    return;
  }
  Costs& costs = went_the_other_way ? other_ : held_;
  costs.of_steps[static_cast<size_t>(costs.num_steps++)] =
      absl::ToDoubleSeconds(lost) / static_cast<double>(brought);
  if (held_.num_steps + other_.num_steps == kTrialSteps) EndTrial();
}

void GuessGate::Hold(bool to_guessing, int64_t interval) {
  holds_to_guessing_ = to_guessing;
  trying_ = false;
  steps_ = 0;
  interval_ = interval;
  held_ = {};
  other_ = {};
}

void GuessGate::EndTrial() {
  int64_t won = 0;
  for (int i = 0; i < other_.num_steps; ++i) {
    for (int j = 0; j < held_.num_steps; ++j) {
      const double held = held_.of_steps[static_cast<size_t>(j)];
      if (other_.of_steps[static_cast<size_t>(i)] < held * (1 - kMargin)) ++won;
    }
  }
  if (2 * won > int64_t{other_.num_steps} * held_.num_steps) {
    Hold(!holds_to_guessing_, kFirstInterval);
  } else {
    Hold(holds_to_guessing_, std::min(2 * interval_, kLastInterval));
  }
}

}  // namespace caravan
