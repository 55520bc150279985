#include "cli/time_left.h"

#include <cstdint>

#include "absl/strings/str_cat.h"

namespace caravan {

std::string HowLongGood(absl::Time end, absl::Time now) {
  if (end <= now) return "expired";
  const absl::Duration left = end - now + absl::Seconds(1);
  const int64_t days = left / absl::Hours(24);
  if (days >= 2) return absl::StrCat("good for ", days, " days");
  const int64_t hours = left / absl::Hours(1);
  if (hours == 0) return "good for less than an hour";
  return absl::StrCat("good for ", hours, hours == 1 ? " hour" : " hours");
}

}  // namespace caravan
