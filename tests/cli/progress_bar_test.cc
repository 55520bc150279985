#include "cli/progress_bar.h"

#include "absl/time/time.h"
#include "base/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kMiB = int64_t{1} << 20;

class ProgressBarTest : public ::testing::Test {
 protected:
  SimulatedClock clock_;
  ProgressBar bar_{"packing", ProgressBar::Unit::kBytes, clock_};
};

TEST_F(ProgressBarTest, TellsTheRateAndTheTimeLeft) {
  EXPECT_THAT(bar_.Line(0, 100 * kMiB), HasSubstr("0%  0 B of 100 MiB, 0 B/s"));
  clock_.Advance(absl::Seconds(10));
  EXPECT_THAT(bar_.Line(20 * kMiB, 100 * kMiB),
              HasSubstr("20%  20.0 MiB of 100 MiB, 2.00 MiB/s, 40 s left"));
}

TEST_F(ProgressBarTest, WhatAnEarlierRunDidIsNoPartOfTheRate) {
  EXPECT_THAT(bar_.Line(60 * kMiB, 100 * kMiB), Not(HasSubstr("left")));
  clock_.Advance(absl::Seconds(10));
  EXPECT_THAT(bar_.Line(80 * kMiB, 100 * kMiB),
              HasSubstr("80%  80.0 MiB of 100 MiB, 2.00 MiB/s, 10 s left"));
  clock_.Advance(absl::Seconds(10));
  EXPECT_THAT(bar_.Line(100 * kMiB, 100 * kMiB), HasSubstr("100%  100 MiB of 100 MiB, 2.00 MiB/s"));
}

TEST_F(ProgressBarTest, StartsAnewWhenItFallsAndAfterItsEnd) {
  bar_.Line(10 * kMiB, 100 * kMiB);
  clock_.Advance(absl::Seconds(1000));
  bar_.Line(0, 100 * kMiB);
  clock_.Advance(absl::Seconds(10));
  EXPECT_THAT(bar_.Line(50 * kMiB, 100 * kMiB), HasSubstr("5.00 MiB/s, 10 s left"));
  bar_.Line(100 * kMiB, 100 * kMiB);
  clock_.Advance(absl::Seconds(1000));
  bar_.Line(100 * kMiB, 200 * kMiB);
  clock_.Advance(absl::Seconds(10));
  EXPECT_THAT(bar_.Line(150 * kMiB, 200 * kMiB), HasSubstr("5.00 MiB/s, 10 s left"));
}

}  // namespace
}  // namespace caravan
