#ifndef CARAVAN_BASE_STOPPABLE_SLEEP_H_
#define CARAVAN_BASE_STOPPABLE_SLEEP_H_

#include <stop_token>

#include "absl/time/time.h"

namespace caravan {

/// Returns after `time`, which may be infinite, or as soon as `stop` is requested: then false.
bool SleepUnlessStopped(absl::Duration time, const std::stop_token& stop);

}  // namespace caravan

#endif  // CARAVAN_BASE_STOPPABLE_SLEEP_H_
