#include "base/stoppable_sleep.h"

#include <cstdint>
#include <future>
#include <limits>
#include <stop_token>

#include "base/clock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(StoppableSleepTest, ReturnsAfterItsTime) {
  constexpr absl::Duration kTime = absl::Milliseconds(20);
  const absl::Duration begin = SteadyClock().Now();
  EXPECT_TRUE(SleepUnlessStopped(kTime, {}));
  EXPECT_GE(SteadyClock().Now() - begin, kTime);
  EXPECT_TRUE(SleepUnlessStopped(absl::ZeroDuration(), {}));
}

TEST(StoppableSleepTest, AStopEndsItWheneverItComes) {
  std::stop_source stop;
  auto sleeping = std::async(std::launch::async,
                             [&] { return SleepUnlessStopped(absl::Hours(1), stop.get_token()); });
  stop.request_stop();
  EXPECT_FALSE(sleeping.get());
  EXPECT_FALSE(SleepUnlessStopped(absl::Hours(1), stop.get_token()));
  EXPECT_FALSE(SleepUnlessStopped(absl::ZeroDuration(), stop.get_token()));
}

TEST(StoppableSleepTest, TheLongestTimeIsNotOverAtOnce) {
  for (const absl::Duration time :
       {absl::InfiniteDuration(), absl::Nanoseconds(std::numeric_limits<int64_t>::max())}) {
    std::stop_source stop;
    std::promise<void> begun;
    auto sleeping = std::async(std::launch::async, [&] {
      begun.set_value();
      return SleepUnlessStopped(time, stop.get_token());
    });
    begun.get_future().wait();
    stop.request_stop();
    EXPECT_FALSE(sleeping.get());
  }
}

}  // namespace
}  // namespace caravan
