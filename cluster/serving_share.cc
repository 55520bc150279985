#include "cluster/serving_share.h"

#include <algorithm>
#include <utility>

namespace caravan {

ServingShare::Steps ServingShare::Look() {
  MutexLock lock(&ask_mu_);
  // Always, since it says what has changed since the last call.
  const bool steps_run = options_.steps_run();
  if (!options_.serves()) return Steps::kNone;
  return steps_run ? Steps::kRun : Steps::kPause;
}

absl::Duration ServingShare::TryBegin() {
  const Steps steps = Look();
  MutexLock lock(&mu_);
  const absl::Duration wait = BeginLocked(steps);
  if (wait != absl::InfiniteDuration()) return wait;
  return std::min(std::max(kLook, last_rest_), BoundForLocked());
}

bool ServingShare::Begin(const std::function<bool()>& cancelled) {
  while (!cancelled()) {
    const Steps steps = Look();
    MutexLock lock(&mu_);
    const absl::Duration wait = BeginLocked(steps);
    if (wait <= absl::ZeroDuration()) return true;
    changed_.WaitWithTimeout(&mu_, std::min(wait, kLook));
  }
  return false;
}

void ServingShare::End(absl::Duration took) {
  MutexLock lock(&mu_);
  EndTurnLocked();
  last_rest_ = std::min(kLongestRest, took * (1.0 / options_.share - 1.0));
  not_before_ = options_.clock->Now() + last_rest_;
  changed_.SignalAll();
}

void ServingShare::GiveUpTurn() {
  MutexLock lock(&mu_);
  EndTurnLocked();
  changed_.SignalAll();
}

absl::Duration ServingShare::Wait(bool steps_run) {
  MutexLock lock(&mu_);
  return WaitLocked(steps_run ? Steps::kRun : Steps::kPause);
}

absl::Duration ServingShare::BeginLocked(Steps steps) {
  const absl::Duration wait = WaitLocked(steps);
  if (wait <= absl::ZeroDuration()) {
    if (BoundForLocked() > absl::ZeroDuration()) overdue_ += std::exchange(turns_, 0);
    ++turns_;
    began_ = options_.clock->Now();
  }
  return wait;
}

void ServingShare::EndTurnLocked() {
  // Whose end it is nobody knows; that one of those which hang is counted longer does no harm.
  --(turns_ > 0 ? turns_ : overdue_);
}

absl::Duration ServingShare::BoundForLocked() const {
  if (options_.share >= 1.0) return absl::ZeroDuration();
  return last_step_ + kHold - options_.clock->Now();
}

absl::Duration ServingShare::WaitLocked(Steps steps) {
  const absl::Duration now = options_.clock->Now();
  if (steps == Steps::kRun) last_step_ = now;
  if (steps == Steps::kNone) last_step_ = -absl::InfiniteDuration();
  const absl::Duration bound_for = BoundForLocked();
  if (bound_for <= absl::ZeroDuration()) return absl::ZeroDuration();
  if (turns_ > 0 && now - began_ < kLongestTurn + kLongestRest) return absl::InfiniteDuration();
  return std::clamp(not_before_ - now, absl::ZeroDuration(), bound_for);
}

}  // namespace caravan
