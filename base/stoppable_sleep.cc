#include "base/stoppable_sleep.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "base/clock.h"

namespace caravan {

bool SleepUnlessStopped(absl::Duration time, const std::stop_token& stop) {
  // Not of base/mutex.h, whose CondVar knows no stop tokens; nothing else is guarded here.
  std::mutex mu;
  std::condition_variable_any never;
  std::unique_lock<std::mutex> lock(mu);
  const absl::Duration deadline = SteadyClock().Now() + time;
  while (!stop.stop_requested()) {
    const absl::Duration left = deadline - SteadyClock().Now();
    if (left <= absl::ZeroDuration()) return true;
    // A day bounds what the standard library adds to now, which may be infinite here.
    never.wait_for(lock, stop, absl::ToChronoNanoseconds(std::min(left, absl::Hours(24))),
                   [] { return false; });
  }
  return false;
}

}  // namespace caravan
