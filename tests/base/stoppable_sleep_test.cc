#include "base/stoppable_sleep.h"

#include <future>
#include <stop_token>

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(StoppableSleepTest, ReturnsAfterItsTime) {
  EXPECT_TRUE(SleepUnlessStopped(absl::Milliseconds(1), {}));
  EXPECT_TRUE(SleepUnlessStopped(absl::ZeroDuration(), {}));
}

TEST(StoppableSleepTest, AStopEndsItWheneverItComes) {
  std::stop_source stop;
  auto sleeping = std::async(std::launch::async,
                             [&] { return SleepUnlessStopped(absl::Hours(1), stop.get_token()); });
  stop.request_stop();
  EXPECT_FALSE(sleeping.get());
  EXPECT_FALSE(SleepUnlessStopped(absl::Hours(1), stop.get_token()));
}

}  // namespace
}  // namespace caravan
