#include "cli/time_left.h"

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(TimeLeft, IsInDaysAndNearTheEndInHours) {
  const absl::Time now = absl::FromUnixMillis(1'800'000'000'500);
  const auto after = [&](absl::Duration left) { return HowLongGood(now + left, now); };
  EXPECT_EQ(after(absl::Hours(24 * 3650)), "good for 3650 days");
  EXPECT_EQ(after(absl::Hours(48)), "good for 2 days");
  EXPECT_EQ(after(absl::Hours(48) - absl::Minutes(1)), "good for 47 hours");
  EXPECT_EQ(after(absl::Hours(5)), "good for 5 hours");
  EXPECT_EQ(after(absl::Minutes(119)), "good for 1 hour");
  EXPECT_EQ(after(absl::Minutes(59)), "good for less than an hour");
  EXPECT_EQ(after(absl::ZeroDuration()), "expired");
  EXPECT_EQ(after(-absl::Hours(24 * 2)), "expired");
}

TEST(TimeLeft, ABegunSecondCounts) {
  // Ends at a whole second, asked for within the first.
  const absl::Time made = absl::FromUnixMillis(1'800'000'000'500);
  EXPECT_EQ(HowLongGood(absl::FromUnixSeconds(1'800'000'000) + absl::Hours(240), made),
            "good for 10 days");
}

}  // namespace
}  // namespace caravan
