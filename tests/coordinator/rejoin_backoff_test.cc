#include "coordinator/rejoin_backoff.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace caravan {
namespace {

/// Workers that join and are lost on a simulated clock.
class RejoinBackoffTest : public ::testing::Test {
 protected:
  Member Join(const std::string& name, const std::string& address = "10.0.0.1:7000",
              const std::string& identity = "") {
    Member member;
    member.id = WorkerId{++last_id_};
    member.identity = identity;
    member.registration.set_name(name);
    member.registration.set_address(address);
    backoff_.Joined(member);
    return member;
  }

  /// It gets a stage, serves for so long (zero: not at all), and is lost.
  void ServeAndLose(const Member& member, absl::Duration serving = absl::ZeroDuration()) {
    if (serving > absl::ZeroDuration()) {
      backoff_.Serves(member.id);
      clock_.Advance(serving);
      backoff_.Serves(member.id);  // of another plan: it goes on
    }
    backoff_.Lost(member, /*had_stage=*/true);
  }

  void LoseInARow(int times, const std::string& name = "box-a") {
    for (int i = 0; i < times; ++i) ServeAndLose(Join(name), absl::Seconds(1));
  }

  SimulatedClock clock_;
  RejoinBackoff backoff_{{.delay = absl::Seconds(30), .clock = &clock_}};
  uint32_t last_id_ = 0;
};

TEST_F(RejoinBackoffTest, LetsThoseInAtOnceWhoWereLostOnceOrTwice) {
  EXPECT_EQ(backoff_.HoldsFor(Join("box-a").id), absl::ZeroDuration());
  LoseInARow(2);
  EXPECT_FALSE(backoff_.Holds(Join("box-a").id));
  EXPECT_FALSE(backoff_.HoldsAnybody());
}

TEST_F(RejoinBackoffTest, HoldsThoseBackWhoWereLostThreeTimesInARow) {
  LoseInARow(3);
  clock_.Advance(absl::Seconds(10));
  const Member again = Join("box-a", "10.0.0.1:4711");
  EXPECT_TRUE(backoff_.Holds(again.id));
  EXPECT_EQ(backoff_.HoldsFor(again.id), absl::Seconds(20)) << "since it was lost";
  EXPECT_EQ(backoff_.Describe(), "worker 4 (box-a), lost 3 times in a row, for 20s");
  clock_.Advance(absl::Seconds(20) - absl::Nanoseconds(1));
  EXPECT_FALSE(backoff_.EndHolds());
  EXPECT_TRUE(backoff_.Holds(again.id));
  clock_.Advance(absl::Nanoseconds(1));
  EXPECT_TRUE(backoff_.EndHolds());
  EXPECT_FALSE(backoff_.HoldsAnybody());
  EXPECT_FALSE(backoff_.EndHolds()) << "once";
}

TEST_F(RejoinBackoffTest, TheDelayDoublesUpToTenTimesTheFirst) {
  LoseInARow(3);
  for (const int seconds : {30, 60, 120, 240, 300, 300}) {
    const Member again = Join("box-a");
    EXPECT_EQ(backoff_.HoldsFor(again.id), absl::Seconds(seconds));
    clock_.Advance(absl::Seconds(seconds));
    EXPECT_TRUE(backoff_.EndHolds());
    ServeAndLose(again, absl::Seconds(1));
  }
}

TEST_F(RejoinBackoffTest, WhoServedWellBeginsAnew) {
  LoseInARow(2);
  ServeAndLose(Join("box-a"), absl::Minutes(5));
  EXPECT_FALSE(backoff_.Holds(Join("box-a").id));
  LoseInARow(1);
  EXPECT_FALSE(backoff_.Holds(Join("box-a").id));
  LoseInARow(1);
  EXPECT_TRUE(backoff_.Holds(Join("box-a").id));
}

TEST_F(RejoinBackoffTest, WhatIsServedIsAddedUpAndBeingSpareIsNoService) {
  LoseInARow(2);
  const Member spare = Join("box-a");
  backoff_.Serves(spare.id);
  clock_.Advance(absl::Seconds(1));
  backoff_.Ends(spare.id);
  clock_.Advance(absl::Minutes(10));
  backoff_.Lost(spare, /*had_stage=*/true);
  const Member twice = Join("box-a");
  EXPECT_TRUE(backoff_.Holds(twice.id));
  for (int i = 0; i < 2; ++i) {
    backoff_.Serves(twice.id);
    clock_.Advance(absl::Minutes(2.5));
    backoff_.Ends(twice.id);
    backoff_.Ends(twice.id);  // once
    clock_.Advance(absl::Minutes(1));
  }
  backoff_.Lost(twice, /*had_stage=*/true);
  EXPECT_FALSE(backoff_.Holds(Join("box-a").id));
}

TEST_F(RejoinBackoffTest, AnIdentityIsKnownAgainOnAnotherHost) {
  for (int i = 0; i < 3; ++i) ServeAndLose(Join("box-a", "10.0.0.1:7000", "worker/a"));
  EXPECT_TRUE(backoff_.Holds(Join("box-a", "10.0.0.2:7000", "worker/a").id));
  EXPECT_FALSE(backoff_.Holds(Join("box-b", "10.0.0.1:7000", "worker/a").id));
}

TEST_F(RejoinBackoffTest, LossesThatDisturbedNobodyDoNotCount) {
  LoseInARow(2);
  for (int i = 0; i < 5; ++i) backoff_.Lost(Join("box-a"), /*had_stage=*/false);
  EXPECT_FALSE(backoff_.Holds(Join("box-a").id));
  // Nor do they lengthen what began.
  LoseInARow(1);
  clock_.Advance(absl::Seconds(29));
  const Member held = Join("box-a");
  backoff_.Lost(held, /*had_stage=*/false);
  EXPECT_FALSE(backoff_.HoldsAnybody());
  EXPECT_EQ(backoff_.HoldsFor(Join("box-a").id), absl::Seconds(1));
}

TEST_F(RejoinBackoffTest, IsForgottenAfterAnHour) {
  LoseInARow(2);
  clock_.Advance(absl::Hours(1) + absl::Nanoseconds(1));
  LoseInARow(1);
  EXPECT_FALSE(backoff_.Holds(Join("box-a").id));
}

TEST_F(RejoinBackoffTest, TellsWorkersByIdentityNameAndHost) {
  LoseInARow(3);
  EXPECT_FALSE(backoff_.Holds(Join("box-b").id));
  EXPECT_FALSE(backoff_.Holds(Join("box-a", "10.0.0.2:7000").id));
  EXPECT_FALSE(backoff_.Holds(Join("box-a", "10.0.0.1:7000", "worker/a").id));
  EXPECT_TRUE(backoff_.Holds(Join("box-a").id));
}

TEST_F(RejoinBackoffTest, LetsThoseInWhomTheOthersCannotDoWithout) {
  LoseInARow(3);
  LoseInARow(3, "box-b");
  const Member a = Join("box-a");
  const Member b = Join("box-b");
  EXPECT_EQ(backoff_.Describe(),
            "worker 7 (box-a), lost 3 times in a row, for 27s, "
            "worker 8 (box-b), lost 3 times in a row, for 30s");
  backoff_.LetIn({b.id});
  EXPECT_FALSE(backoff_.Holds(b.id));
  EXPECT_TRUE(backoff_.Holds(a.id));
  backoff_.LetIn({a.id, b.id});
  EXPECT_FALSE(backoff_.HoldsAnybody());
}

TEST_F(RejoinBackoffTest, NamesThoseFirstWhoWereLostLeastOftenAndThenWhoHasLeastToWait) {
  LoseInARow(4);
  LoseInARow(3, "box-b");
  LoseInARow(3, "box-c");
  const WorkerId a = Join("box-a").id;
  const WorkerId c = Join("box-c").id;
  const WorkerId b = Join("box-b").id;
  EXPECT_EQ(backoff_.Held(), (std::vector<WorkerId>{b, c, a}));
}

TEST_F(RejoinBackoffTest, WithoutADelayNobodyIsHeldBack) {
  RejoinBackoff none({.delay = absl::ZeroDuration(), .clock = &clock_});
  Member member;
  member.registration.set_name("box-a");
  for (int i = 0; i < 10; ++i) none.Lost(member, /*had_stage=*/true);
  none.Joined(member);
  EXPECT_FALSE(none.HoldsAnybody());
}

}  // namespace
}  // namespace caravan
