#include "cluster/serving_share.h"

#include <atomic>
#include <future>
#include <thread>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

class ServingShareTest : public ::testing::Test {
 protected:
  ServingShare::Options Options(double share) {
    ServingShare::Options options;
    options.share = share;
    options.steps_run = [this] { return steps_run_.load(); };
    options.serves = [this] { return serves_.load(); };
    options.clock = &clock_;
    return options;
  }
  static bool Never() { return false; }

  SimulatedClock clock_;
  std::atomic<bool> steps_run_ = true;
  std::atomic<bool> serves_ = true;
};

TEST_F(ServingShareTest, WithoutStepsPartsPassAtOnceAndTogether) {
  steps_run_ = false;
  ServingShare share(Options(0.05));
  EXPECT_TRUE(share.Begin(Never));
  EXPECT_TRUE(share.Begin(Never));
  share.End(absl::Seconds(1));
  EXPECT_TRUE(share.Begin(Never));
}

TEST_F(ServingShareTest, WhileStepsRunAPartRestsForItsShare) {
  ServingShare share(Options(0.05));
  ASSERT_TRUE(share.Begin(Never));
  EXPECT_EQ(share.Wait(true), absl::InfiniteDuration());  // one at a time
  clock_.Advance(absl::Milliseconds(10));
  share.End(absl::Milliseconds(10));
  EXPECT_NEAR(absl::ToDoubleMilliseconds(share.Wait(true)), 190, 1e-3);
  clock_.Advance(absl::Milliseconds(190) + absl::Microseconds(1));
  EXPECT_EQ(share.Wait(true), absl::ZeroDuration());
}

TEST_F(ServingShareTest, OverAnyTimePartsHaveNoMoreThanTheShare) {
  ServingShare share(Options(0.1));
  absl::Duration passing;
  for (int i = 1; i <= 200; ++i) {
    clock_.Advance(share.Wait(true));
    ASSERT_TRUE(share.Begin(Never));
    const absl::Duration took = absl::Milliseconds(1 + i * 37 % 90);
    clock_.Advance(took);
    share.End(took);
    passing += took;
  }
  EXPECT_LE(absl::FDivDuration(passing, clock_.Now()), 0.101);
  EXPECT_GE(absl::FDivDuration(passing, clock_.Now()), 0.095);
}

TEST_F(ServingShareTest, TheBoundHoldsForAWhileAfterTheLastStep) {
  ServingShare share(Options(0.05));
  ASSERT_TRUE(share.Begin(Never));
  // It is to rest until a second after the hold.
  clock_.Advance(absl::Seconds(1));
  share.End(absl::Seconds(1));
  EXPECT_EQ(share.Wait(false), ServingShare::kHold - absl::Seconds(1)) << "the bound ends first";
  clock_.Advance(ServingShare::kHold - absl::Seconds(1) - absl::Milliseconds(1));
  EXPECT_EQ(share.Wait(false), absl::Milliseconds(1));
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(share.Wait(false), absl::ZeroDuration()) << "though the rest has a second to go";
}

TEST_F(ServingShareTest, WhoTriesWhileAPartPassesIsNotToldToWaitBeyondTheBound) {
  ServingShare share(Options(0.05));
  ASSERT_TRUE(share.Begin(Never));
  share.End(absl::Seconds(1));
  clock_.Advance(ServingShare::kLongestRest);
  ASSERT_EQ(share.TryBegin(), absl::ZeroDuration());
  steps_run_ = false;
  EXPECT_EQ(share.TryBegin(), ServingShare::kHold) << "and the rest before was as long";
  clock_.Advance(ServingShare::kHold - absl::Milliseconds(1));
  EXPECT_EQ(share.TryBegin(), absl::Milliseconds(1));
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(share.TryBegin(), absl::ZeroDuration());
}

TEST_F(ServingShareTest, WhereNothingServesThereIsNoBound) {
  ServingShare share(Options(0.05));
  ASSERT_TRUE(share.Begin(Never));
  EXPECT_EQ(share.TryBegin(), ServingShare::kLook);
  serves_ = false;
  EXPECT_EQ(share.TryBegin(), absl::ZeroDuration()) << "the last steps of a pipeline that is gone";
  serves_ = true;
  steps_run_ = false;
  EXPECT_EQ(share.TryBegin(), absl::ZeroDuration()) << "no step ran since it serves again";
  steps_run_ = true;
  EXPECT_GT(share.TryBegin(), absl::ZeroDuration());
}

TEST_F(ServingShareTest, APartToASlowBoxDoesNotKeepOthersWaitingForEver) {
  ServingShare share(Options(0.01));
  ASSERT_TRUE(share.Begin(Never));
  clock_.Advance(absl::Minutes(1));
  share.End(absl::Minutes(1));
  EXPECT_EQ(share.Wait(true), ServingShare::kLongestRest);
}

TEST_F(ServingShareTest, WhoTriesIsToldAtOnceHowLongToWait) {
  ServingShare share(Options(0.05));
  EXPECT_EQ(share.TryBegin(), absl::ZeroDuration());
  EXPECT_EQ(share.TryBegin(), ServingShare::kLook) << "nobody knows when the other will be done";
  share.End(absl::Milliseconds(10));
  EXPECT_NEAR(absl::ToDoubleMilliseconds(share.TryBegin()), 190, 1e-3);
  clock_.Advance(absl::Milliseconds(190) + absl::Microseconds(1));
  EXPECT_EQ(share.TryBegin(), absl::ZeroDuration());
  EXPECT_NEAR(absl::ToDoubleMilliseconds(share.TryBegin()), 190, 1e-3) << "as the last time";
  share.GiveUpTurn();
  EXPECT_EQ(share.TryBegin(), absl::ZeroDuration()) << "nothing passed, so there is no rest";
}

TEST_F(ServingShareTest, APartThatHangsKeepsOthersFromTheirTurnOnlyForAWhile) {
  ServingShare share(Options(0.05));
  ASSERT_TRUE(share.Begin(Never));
  const absl::Duration bound = ServingShare::kLongestTurn + ServingShare::kLongestRest;
  clock_.Advance(bound - absl::Milliseconds(1));
  EXPECT_EQ(share.Wait(true), absl::InfiniteDuration());
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(share.TryBegin(), absl::ZeroDuration());
  EXPECT_EQ(share.Wait(true), absl::InfiniteDuration()) << "one at a time again";
  share.End(absl::Milliseconds(10));
  EXPECT_NEAR(absl::ToDoubleMilliseconds(share.Wait(true)), 190, 1e-3) << "the other still hangs";
  share.End(bound);
  EXPECT_EQ(share.Wait(true), ServingShare::kLongestRest);
  clock_.Advance(ServingShare::kLongestRest);
  EXPECT_EQ(share.Wait(true), absl::ZeroDuration());
}

TEST_F(ServingShareTest, AllOfTheTimeIsNoBound) {
  ServingShare share(Options(1));
  EXPECT_TRUE(share.Begin(Never));
  EXPECT_EQ(share.Wait(true), absl::ZeroDuration());
}

TEST_F(ServingShareTest, WhoWaitsBeginsWhenTheOtherEndsAndGivesUpWhenCancelled) {
  ServingShare share(Options(0.5));
  ASSERT_TRUE(share.Begin(Never));
  std::atomic<bool> began = false;
  // Begin asks whether it is cancelled each time before it looks for its turn: by the second time
  // it has found none.
  std::atomic<int> looks = 0;
  std::promise<void> waits;
  std::thread waiting([&] {
    began = share.Begin([&] {
      if (++looks == 2) waits.set_value();
      return false;
    });
  });
  waits.get_future().wait();
  EXPECT_FALSE(began);
  share.End(absl::ZeroDuration());
  waiting.join();
  EXPECT_TRUE(began);

  std::atomic<bool> cancelled = false;
  std::atomic<bool> gave_up = false;
  std::thread cancelling([&] { gave_up = !share.Begin([&] { return cancelled.load(); }); });
  cancelled = true;
  cancelling.join();
  EXPECT_TRUE(gave_up);
}

}  // namespace
}  // namespace caravan
