#include "cluster/serving_share.h"

#include <algorithm>

namespace caravan {
namespace {

// How often who waits looks whether steps still run, and whether it is still wanted.
constexpr absl::Duration kLook = absl::Milliseconds(50);

}  // namespace

std::optional<absl::Duration> ServingShare::Begin(const std::function<bool()>& cancelled) {
  const absl::Duration begin = options_.clock->Now();
  while (!cancelled()) {
    bool steps_run = false;
    {
      MutexLock lock(&ask_mu_);
      steps_run = options_.steps_run();
    }
    MutexLock lock(&mu_);
    const absl::Duration wait = WaitLocked(steps_run);
    if (wait <= absl::ZeroDuration()) {
      ++turns_;
      return options_.clock->Now() - begin;
    }
    changed_.WaitWithTimeout(&mu_, std::min(wait, kLook));
  }
  return std::nullopt;
}

void ServingShare::End(absl::Duration took) {
  MutexLock lock(&mu_);
  --turns_;
  not_before_ = options_.clock->Now() + std::min(kLongestRest, took * (1.0 / options_.share - 1.0));
  changed_.SignalAll();
}

absl::Duration ServingShare::Wait(bool steps_run) {
  MutexLock lock(&mu_);
  return WaitLocked(steps_run);
}

absl::Duration ServingShare::WaitLocked(bool steps_run) {
  const absl::Duration now = options_.clock->Now();
  if (steps_run) last_step_ = now;
  if (options_.share >= 1.0 || now - last_step_ >= kHold) return absl::ZeroDuration();
  if (turns_ > 0) return absl::InfiniteDuration();
  return std::max(absl::ZeroDuration(), not_before_ - now);
}

}  // namespace caravan
