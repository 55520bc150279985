#include "base/clock.h"

#include <chrono>

namespace caravan {
namespace {

class MonotonicClock : public Clock {
 public:
  absl::Duration Now() const override {
    return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
  }
};

}  // namespace

Clock& SteadyClock() {
  static MonotonicClock* const clock = new MonotonicClock;
  return *clock;
}

absl::Duration SimulatedClock::Now() const {
  MutexLock lock(&mu_);
  return now_;
}

void SimulatedClock::Advance(absl::Duration by) {
  MutexLock lock(&mu_);
  now_ += by;
}

}  // namespace caravan
