#include "base/clock.h"

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(SimulatedClockTest, MovesOnlyWhenTold) {
  SimulatedClock clock;
  EXPECT_EQ(clock.Now(), absl::ZeroDuration());
  clock.Advance(absl::Milliseconds(1500));
  EXPECT_EQ(clock.Now(), absl::Milliseconds(1500));
  EXPECT_EQ(clock.Now(), absl::Milliseconds(1500));
  clock.Advance(absl::Seconds(1));
  EXPECT_EQ(clock.Now(), absl::Milliseconds(2500));
}

TEST(SteadyClockTest, NeverGoesBackAndGoesOn) {
  Clock& clock = SteadyClock();
  EXPECT_EQ(&clock, &SteadyClock());
  const absl::Duration start = clock.Now();
  absl::Duration last = start;
  while (last == start) {
    const absl::Duration now = clock.Now();
    ASSERT_GE(now, last);
    last = now;
  }
  EXPECT_GT(last, start);
}

}  // namespace
}  // namespace caravan
