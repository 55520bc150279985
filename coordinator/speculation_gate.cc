#include "coordinator/speculation_gate.h"

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace caravan {

void SpeculationGate::Gain::Add(double tokens, absl::Duration round_trip) {
  steps_.push_back({tokens, round_trip});
  if (steps_.size() > kWindow) steps_.pop_front();
}

double SpeculationGate::Gain::TokensPerSecond() const {
  CARAVAN_CHECK(known());
  double tokens = 0;
  std::vector<absl::Duration> round_trips;
  for (const OneStep& step : steps_) {
    tokens += step.tokens;
    round_trips.push_back(step.round_trip);
  }
  const auto middle = round_trips.begin() + kWindow / 2;
  std::nth_element(round_trips.begin(), middle, round_trips.end());
  // A clock that did not move: as if the shortest time had passed.
  const absl::Duration median = std::max(*middle, absl::Nanoseconds(1));
  return tokens / kWindow / absl::ToDoubleSeconds(median);
}

int64_t SpeculationGate::LoadClass(int64_t num_decoding) {
  int64_t power = 1;
  while (2 * power < num_decoding) power *= 2;
  // Of (power, 2 power] the lower or the upper half.
  if (num_decoding <= power) return power;
  return num_decoding <= power + power / 2 ? power + power / 2 : 2 * power;
}

bool SpeculationGate::Drafts(int64_t num_decoding) const {
  const auto load = loads_.find(LoadClass(num_decoding));
  return load == loads_.end() || load->second.drafts_now();
}

void SpeculationGate::StepReturned(const Step& step) {
  CARAVAN_CHECK(step.decoding_slices >= 1);
  if (step.drafts != way_) steps_that_way_ = 0;
  way_ = step.drafts;
  if (++steps_that_way_ <= num_stages_ || step.prompt_rows > step.decoding_slices) return;
  Load& load = loads_[LoadClass(step.num_decoding)];
  if (step.drafts != load.drafts_now()) return;  // sent before this load changed its way
  Gain& gain = load.trying ? load.other() : load.held();
  gain.Add(static_cast<double>(step.sampled_tokens) / static_cast<double>(step.decoding_slices),
           step.round_trip);
  ++load.steps;
  if (load.trying) {
    if (load.other().known()) EndTrial(load);
  } else if (TrialIsDue(load)) {
    load.trying = true;
    load.steps = 0;
    load.other().Clear();
  }
}

bool SpeculationGate::TrialIsDue(Load& load) {
  if (!load.held().known()) return false;
  if (load.steps >= load.interval) return true;
  return load.steps >= kFirstInterval && load.other().known() &&
         load.held().TokensPerSecond() * (1 + kMargin) < load.other().TokensPerSecond();
}

void SpeculationGate::EndTrial(Load& load) {
  const bool better =
      load.other().TokensPerSecond() > load.held().TokensPerSecond() * (1 + kMargin);
  load.trying = false;
  load.steps = 0;
  if (better) {
    load.drafts = !load.drafts;
    load.interval = kFirstInterval;
  } else {
    load.interval = std::clamp(2 * load.interval, kFirstInterval, kLastInterval);
  }
}

}  // namespace caravan
