#ifndef CARAVAN_CLI_TIME_LEFT_H_
#define CARAVAN_CLI_TIME_LEFT_H_

// How long something is good, in words.

#include <string>

#include "absl/time/time.h"

namespace caravan {

/// Until `end`: "good for 30 days" in whole days, "good for 47 hours" below two of them, "good for
/// less than an hour", or "expired". Of the second that `now` is within nothing is gone:
/// certificates know whole seconds.
std::string HowLongGood(absl::Time end, absl::Time now);

}  // namespace caravan

#endif  // CARAVAN_CLI_TIME_LEFT_H_
