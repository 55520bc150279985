#include "base/stoppable_sleep.h"

#include <condition_variable>
#include <mutex>

namespace caravan {

bool SleepUnlessStopped(absl::Duration time, const std::stop_token& stop) {
  // Not of base/mutex.h, whose CondVar knows no stop tokens; nothing else is guarded here.
  std::mutex mu;
  std::condition_variable_any never;
  std::unique_lock<std::mutex> lock(mu);
  never.wait_for(lock, stop, absl::ToChronoNanoseconds(time), [] { return false; });
  return !stop.stop_requested();
}

}  // namespace caravan
