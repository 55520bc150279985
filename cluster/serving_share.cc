#include "cluster/serving_share.h"

#include <algorithm>
#include <utility>

namespace caravan {

bool ServingShare::StepsRun() {
  MutexLock lock(&ask_mu_);
  return options_.steps_run();
}

absl::Duration ServingShare::TryBegin() {
  const bool steps_run = StepsRun();
  MutexLock lock(&mu_);
  const absl::Duration wait = BeginLocked(steps_run);
  return wait == absl::InfiniteDuration() ? std::max(kLook, last_rest_) : wait;
}

bool ServingShare::Begin(const std::function<bool()>& cancelled) {
  while (!cancelled()) {
    const bool steps_run = StepsRun();
    MutexLock lock(&mu_);
    const absl::Duration wait = BeginLocked(steps_run);
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
  return WaitLocked(steps_run);
}

absl::Duration ServingShare::BeginLocked(bool steps_run) {
  const absl::Duration wait = WaitLocked(steps_run);
  if (wait <= absl::ZeroDuration()) {
    if (IsBoundLocked()) overdue_ += std::exchange(turns_, 0);
    ++turns_;
    began_ = options_.clock->Now();
  }
  return wait;
}

void ServingShare::EndTurnLocked() {
  // Whose end it is nobody knows; that one of those which hang is counted longer does no harm.
  --(turns_ > 0 ? turns_ : overdue_);
}

bool ServingShare::IsBoundLocked() const {
  return options_.share < 1.0 && options_.clock->Now() - last_step_ < kHold;
}

absl::Duration ServingShare::WaitLocked(bool steps_run) {
  const absl::Duration now = options_.clock->Now();
  if (steps_run) last_step_ = now;
  if (!IsBoundLocked()) return absl::ZeroDuration();
  if (turns_ > 0 && now - began_ < kLongestTurn + kLongestRest) return absl::InfiniteDuration();
  return std::max(absl::ZeroDuration(), not_before_ - now);
}

}  // namespace caravan
