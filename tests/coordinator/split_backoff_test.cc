#include "coordinator/split_backoff.h"

#include "gtest/gtest.h"

namespace caravan {
namespace {

/// Layers [0, first) on worker 1, the others of eight on worker 2.
PipelinePlan Split(int first, uint64_t version = 1) {
  PipelinePlan plan;
  plan.version = version;
  plan.stages.push_back({.worker = WorkerId{1}, .stage = {0, first, true, false}});
  plan.stages.push_back({.worker = WorkerId{2}, .stage = {first, 8, false, true}});
  return plan;
}

const absl::Status kWhy = absl::UnavailableError("box-b is slow");

TEST(SplitBackoffTest, ASplitIsWorkersAndLayersWhateverTheVersion) {
  EXPECT_TRUE(SameSplit(Split(4, 1), Split(4, 2)));
  EXPECT_FALSE(SameSplit(Split(4), Split(5)));
  PipelinePlan other = Split(4);
  other.stages[1].worker = WorkerId{3};
  EXPECT_FALSE(SameSplit(Split(4), other));
  other.stages.pop_back();
  EXPECT_FALSE(SameSplit(Split(4), other));
  EXPECT_FALSE(SameSplit(other, Split(4)));
}

TEST(SplitBackoffTest, HoldsWhatFailedForTheDelayAndNothingElse) {
  SimulatedClock clock;
  SplitBackoff backoff(&clock);
  EXPECT_EQ(backoff.until(), std::nullopt);
  EXPECT_EQ(backoff.why(), "");
  backoff.Failed(Split(4), kWhy, absl::Seconds(5));
  EXPECT_TRUE(backoff.Holds(Split(4, 7)));
  EXPECT_FALSE(backoff.Holds(Split(5)));
  EXPECT_EQ(backoff.why(), "box-b is slow");
  EXPECT_EQ(*backoff.until(), clock.Now() + absl::Seconds(5));
  clock.Advance(absl::Seconds(5) - absl::Nanoseconds(1));
  EXPECT_TRUE(backoff.Holds(Split(4)));
  clock.Advance(absl::Nanoseconds(1));
  EXPECT_FALSE(backoff.Holds(Split(4)));
  EXPECT_EQ(backoff.why(), "");
  EXPECT_TRUE(backoff.until().has_value()) << "it is to be tried again";
}

TEST(SplitBackoffTest, EachFailureInARowDoublesTheDelay) {
  SimulatedClock clock;
  SplitBackoff backoff(&clock);
  for (const int seconds : {5, 10, 20, 40, 80, 160, 320, 320}) {
    backoff.Failed(Split(4), kWhy, absl::Seconds(5));
    EXPECT_EQ(*backoff.until() - clock.Now(), absl::Seconds(seconds));
    clock.Advance(absl::Seconds(seconds));
  }
  backoff.Failed(Split(5), kWhy, absl::Seconds(5));
  EXPECT_EQ(*backoff.until() - clock.Now(), absl::Seconds(5)) << "another one";
}

TEST(SplitBackoffTest, ForgetsWhatServes) {
  SimulatedClock clock;
  SplitBackoff backoff(&clock);
  backoff.Failed(Split(4), kWhy, absl::Seconds(5));
  backoff.Serves(Split(5));
  EXPECT_TRUE(backoff.Holds(Split(4)));
  backoff.Serves(Split(4, 3));
  EXPECT_EQ(backoff.until(), std::nullopt);
  backoff.Failed(Split(4), kWhy, absl::Seconds(5));
  EXPECT_EQ(*backoff.until() - clock.Now(), absl::Seconds(5)) << "the first time again";
}

}  // namespace
}  // namespace caravan
