#include "coordinator/plan_roster.h"

#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

/// Members on a simulated clock, which tell each other by name.
class PlanRosterTest : public ::testing::Test {
 protected:
  WorkerId Join(const std::string& name, bool offloads = false) {
    v1::Registration registration;
    registration.set_name(name);
    registration.set_address(absl::StrCat("10.0.0.", ++addresses_, ":7000"));
    registration.set_device("cpu");
    registration.set_memory_budget_bytes(1000);
    registration.set_num_threads(1);
    registration.set_offloads(offloads);
    const absl::StatusOr<WorkerId> id =
        members_.Join(static_cast<uint64_t>(addresses_), registration, "worker/" + name);
    EXPECT_TRUE(id.ok()) << id.status();
    roster_.Joined(*members_.Find(*id));
    return *id;
  }
  void Lose(WorkerId worker, bool had_stage = true) {
    const Member member = *members_.Find(worker);
    EXPECT_TRUE(members_.Leave(worker, member.incarnation).ok());
    roster_.Lost(member, had_stage);
  }
  /// A member that is held back: it was lost so often before.
  WorkerId JoinHeldBack(const std::string& name, int losses = 3) {
    for (int i = 0; i < losses; ++i) Lose(Join(name));
    return Join(name);
  }

  std::vector<std::string> Usable() const { return Names(roster_.Usable()); }
  static std::vector<std::string> Names(const std::vector<Member>& members) {
    std::vector<std::string> names;
    for (const Member& member : members) names.push_back(member.registration.name());
    return names;
  }
  /// Whom a plan takes that is content with these names, or more.
  absl::StatusOr<std::vector<WorkerId>> NeededFor(const std::set<std::string>& wanted,
                                                  WorkerId but = {}) {
    return roster_.Needed(
        [&](const std::vector<Member>& members) {
          ++tries_;
          std::set<std::string> missing = wanted;
          for (const Member& member : members) missing.erase(member.registration.name());
          if (missing.empty()) return absl::OkStatus();
          return absl::FailedPreconditionError(absl::StrCat("no ", *missing.begin()));
        },
        but);
  }

  SimulatedClock clock_;
  Membership members_{clock_, {}};
  PlanRoster roster_{{.delay = absl::Seconds(30), .clock = &clock_}, &members_};
  int addresses_ = 0;
  int tries_ = 0;
};

StagePlan StageOf(WorkerId worker, int64_t expert_bytes = 0) {
  StagePlan stage;
  stage.worker = worker;
  stage.expert_bytes = expert_bytes;
  return stage;
}

TEST_F(PlanRosterTest, FindsAMemberByNameOrNumber) {
  const WorkerId a = Join("box-a");
  const WorkerId b = Join("box-b");
  EXPECT_EQ(*roster_.Find("box-b"), b);
  EXPECT_EQ(*roster_.Find("1"), a);
  EXPECT_EQ(roster_.Find("box-c").status().code(), absl::StatusCode::kNotFound);
  Join("box-b");
  EXPECT_EQ(roster_.Find("box-b").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(*roster_.Find("2"), b);
}

TEST_F(PlanRosterTest, KeepsOutWhoIsDrainedUntilThatEnds) {
  const WorkerId a = Join("box-a");
  Join("box-b");
  EXPECT_TRUE(roster_.Drain(a));
  EXPECT_FALSE(roster_.Drain(a)) << "once more";
  EXPECT_THAT(Usable(), ElementsAre("box-b"));
  EXPECT_EQ(roster_.Describe([](WorkerId) { return true; }), "; drained: worker 1 (box-a)");
  v1::WorkerStatus status;
  roster_.Describe(a, status);
  EXPECT_TRUE(status.drained());
  EXPECT_TRUE(roster_.EndDrain(a));
  EXPECT_FALSE(roster_.EndDrain(a));
  EXPECT_THAT(Usable(), ElementsAre("box-a", "box-b"));
}

TEST_F(PlanRosterTest, ForgetsAllOfAWorkerThatIsLost) {
  const WorkerId a = Join("box-a");
  const WorkerId b = Join("box-b", /*offloads=*/true);
  roster_.Drain(a);
  roster_.Suspect(a, absl::DataLossError("expert 3"));
  roster_.LeaveOut(a, StageOf(a), absl::NotFoundError("no files"), absl::StatusCode::kNotFound);
  roster_.LeaveOut(b, StageOf(b, 100), absl::UnavailableError("no pack"),
                   absl::StatusCode::kFailedPrecondition);
  Lose(a);
  Lose(b);
  EXPECT_THAT(roster_.suspects(), IsEmpty());
  EXPECT_EQ(roster_.Describe([](WorkerId) { return false; }), "");
  Join("box-a");
  const WorkerId again = Join("box-b", /*offloads=*/true);
  EXPECT_THAT(Usable(), ElementsAre("box-a", "box-b"));
  EXPECT_TRUE(roster_.MayOffload(*members_.Find(again)));
}

TEST_F(PlanRosterTest, WhoLacksOnlyAPackGetsStagesThatFitItsMemory) {
  const WorkerId a = Join("box-a", /*offloads=*/true);
  roster_.LeaveOut(a, StageOf(a, 100), absl::UnavailableError("no pack"),
                   absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Usable(), ElementsAre("box-a"));
  EXPECT_FALSE(roster_.MayOffload(*members_.Find(a)));
  EXPECT_EQ(roster_.Describe([](WorkerId) { return true; }), "; not offloading: no pack");
  EXPECT_EQ(roster_.Describe([](WorkerId) { return false; }), "; left out: no pack");
  // A stage that fits it cannot be had either.
  roster_.LeaveOut(a, StageOf(a), absl::UnavailableError("another model"),
                   absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Usable(), IsEmpty());
  EXPECT_EQ(roster_.Describe([](WorkerId) { return false; }), "; left out: another model");
}

TEST_F(PlanRosterTest, ASuspectIsUsableUntilItIsLeftOut) {
  const WorkerId a = Join("box-a");
  roster_.Suspect(a, absl::DataLossError("expert 3"));
  EXPECT_THAT(Usable(), ElementsAre("box-a"));
  EXPECT_EQ(roster_.suspects().at(a).message(), "expert 3");
  roster_.LeaveOut(a, StageOf(a, 100), roster_.suspects().at(a), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Usable(), IsEmpty());
  EXPECT_THAT(roster_.suspects(), IsEmpty());
}

TEST_F(PlanRosterTest, KnowsFaultsThatStay) {
  EXPECT_TRUE(PlanRoster::IsPermanent(absl::StatusCode::kDataLoss));
  EXPECT_TRUE(PlanRoster::IsPermanent(absl::StatusCode::kResourceExhausted));
  EXPECT_FALSE(PlanRoster::IsPermanent(absl::StatusCode::kUnavailable));
  EXPECT_FALSE(PlanRoster::IsPermanent(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(PlanRoster::IsPermanent(absl::StatusCode::kInternal));
}

TEST_F(PlanRosterTest, NobodyIsNeededWhereTheUsableOnesDo) {
  Join("box-a");
  JoinHeldBack("box-b");
  EXPECT_THAT(*NeededFor({"box-a"}), IsEmpty());
  EXPECT_EQ(tries_, 1);
}

TEST_F(PlanRosterTest, NeedsAsFewOfThoseHeldBackAsItTakes) {
  Join("box-a");
  const WorkerId b = JoinHeldBack("box-b", 5);
  const WorkerId c = JoinHeldBack("box-c", 3);
  const WorkerId d = JoinHeldBack("box-d", 4);
  EXPECT_THAT(*NeededFor({"box-a", "box-d"}), ElementsAre(d)) << "box-c was tried, and of no use";
  EXPECT_THAT(*NeededFor({"box-c", "box-b"}), UnorderedElementsAre(b, c));
  // Anyone would do: the one that was lost least often.
  EXPECT_THAT(*roster_.Needed([](const std::vector<Member>& members) {
    return members.size() >= 2 ? absl::OkStatus() : absl::UnavailableError("one more");
  }),
              ElementsAre(c));
  EXPECT_THAT(Usable(), ElementsAre("box-a")) << "that lets nobody in";
  roster_.LetIn({d});
  EXPECT_THAT(Usable(), ElementsAre("box-a", "box-d"));
}

TEST_F(PlanRosterTest, OfManyHeldBackFewAreTried) {
  constexpr int kHeld = 100;
  std::vector<WorkerId> held;
  for (int i = 0; i < kHeld; ++i) held.push_back(JoinHeldBack(absl::StrCat("box-", i)));
  EXPECT_THAT(*NeededFor({"box-3"}), ElementsAre(held[3]));
  EXPECT_LE(tries_, 17);
  tries_ = 0;
  const std::vector<WorkerId> most = *NeededFor({"box-3", "box-90"});
  EXPECT_LE(tries_, 17);
  EXPECT_THAT(most, ::testing::IsSupersetOf({held[3], held[90]}));
  EXPECT_LE(most.size(), 91u);
}

TEST_F(PlanRosterTest, WhereNotEvenAllDoItSaysWhatTheyLack) {
  JoinHeldBack("box-a");
  EXPECT_EQ(NeededFor({"box-a", "box-z"}).status(), absl::FailedPreconditionError("no box-z"));
}

TEST_F(PlanRosterTest, WhoIsDrainedOrLeftOutIsNotNeeded) {
  const WorkerId a = Join("box-a");
  const WorkerId b = JoinHeldBack("box-b");
  EXPECT_THAT(*NeededFor({"box-b"}), ElementsAre(b));
  EXPECT_EQ(NeededFor({"box-a"}, /*but=*/a).status(), absl::FailedPreconditionError("no box-a"));
  EXPECT_EQ(NeededFor({"box-b"}, /*but=*/b).status(), absl::FailedPreconditionError("no box-b"));
  roster_.Drain(b);
  EXPECT_EQ(NeededFor({"box-b"}).status(), absl::FailedPreconditionError("no box-b"));
}

TEST_F(PlanRosterTest, HoldsEndAndServingWellIsRemembered) {
  const WorkerId a = JoinHeldBack("box-a");
  EXPECT_THAT(Usable(), IsEmpty());
  v1::WorkerStatus status;
  roster_.Describe(a, status);
  EXPECT_EQ(status.held_back_s(), 30);
  EXPECT_EQ(roster_.Describe([](WorkerId) { return false; }),
            "; held back: worker 4 (box-a), lost 3 times in a row, for 30s");
  clock_.Advance(absl::Seconds(30));
  EXPECT_TRUE(roster_.EndHolds());
  EXPECT_THAT(Usable(), ElementsAre("box-a"));

  PipelinePlan plan;
  plan.stages.push_back(StageOf(a));
  roster_.Serves(plan);
  clock_.Advance(absl::Minutes(10));
  roster_.Ends(plan);
  Lose(a);
  Join("box-a");
  EXPECT_THAT(Usable(), ElementsAre("box-a"));
}

}  // namespace
}  // namespace caravan
