#include "coordinator/kv_replica_rules.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

constexpr int64_t kBudget = 1 << 20;
constexpr int64_t kBlock = 1 << 10;

Member Box(uint32_t id, const std::string& machine) {
  Member member;
  member.id = WorkerId{id};
  member.incarnation = 100 + id;
  member.registration.set_machine(machine);
  member.registration.set_kv_archive_bytes(kBudget);
  return member;
}

v1::KvArchiveNews News(int64_t room_bytes, uint64_t refused_by = 0) {
  v1::KvArchiveNews news;
  news.set_room_bytes(static_cast<uint64_t>(room_bytes));
  news.set_plan_version(1);
  news.set_refused_by(refused_by);
  return news;
}

class KvReplicaRulesTest : public ::testing::Test {
 protected:
  ReplicaFitness Fitness(const Member& from, const Member& to, int64_t block_bytes = kBlock) const {
    return rules_.Fitness(from, to, block_bytes);
  }

  SimulatedClock clock_;
  KvReplicaRules rules_{&clock_};
  const Member a_ = Box(1, "one");
  const Member b_ = Box(2, "two");
};

TEST_F(KvReplicaRulesTest, AnotherMachineIsFitter) {
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kOtherMachine);
  EXPECT_EQ(Fitness(a_, Box(3, "one")), ReplicaFitness::kSameMachine);
  EXPECT_EQ(Fitness(Box(3, ""), Box(4, "")), ReplicaFitness::kOtherMachine) << "not known";
  Member other = Box(3, "two");
  other.registration.set_kv_dtype("F16");
  EXPECT_EQ(Fitness(a_, other), ReplicaFitness::kNone);
  EXPECT_FALSE(HaveOneKvFormat(a_, other));
  other.registration.clear_kv_dtype();
  other.registration.set_kv_archive_bytes(0);
  EXPECT_EQ(Fitness(a_, other), ReplicaFitness::kNone);
  EXPECT_FALSE(HaveOneKvFormat(other, a_));
}

TEST_F(KvReplicaRulesTest, RoomForAFewBlocksIsNone) {
  EXPECT_EQ(Fitness(a_, b_, kBudget / KvReplicaRules::kLeastBlocks), ReplicaFitness::kOtherMachine);
  EXPECT_EQ(Fitness(a_, b_, kBudget / KvReplicaRules::kLeastBlocks + 1), ReplicaFitness::kNone);
  EXPECT_EQ(rules_.RoomBytes(b_), kBudget);
  rules_.Hear(b_, News(8 * kBlock));
  EXPECT_EQ(rules_.RoomBytes(b_), 8 * kBlock);
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kFull);
  rules_.Hear(b_, News(8 * kBlock - 1));
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kNone);
  v1::KvArchiveNews much = News(0);
  much.set_room_bytes(~uint64_t{0});
  rules_.Hear(b_, much);
  EXPECT_EQ(rules_.RoomBytes(b_), kBudget) << "no more than it registered";
  Member boaster = b_;
  boaster.registration.set_kv_archive_bytes(~uint64_t{0});
  EXPECT_EQ(Fitness(a_, boaster), ReplicaFitness::kOtherMachine);
}

TEST_F(KvReplicaRulesTest, ARefusalLastsUntilNewsSayOtherwiseAndForAWhileThen) {
  rules_.Hear(a_, News(kBudget, b_.incarnation));
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kFull);
  clock_.Advance(absl::Hours(24));
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kFull) << "it has not said that it takes anything";
  rules_.Hear(a_, News(kBudget / 2, b_.incarnation));
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kFull);
  EXPECT_EQ(Fitness(Box(3, "three"), b_), ReplicaFitness::kOtherMachine);
  Member reborn = b_;
  reborn.incarnation = 7;
  EXPECT_EQ(Fitness(a_, reborn), ReplicaFitness::kOtherMachine);
  rules_.Hear(a_, News(kBudget));
  clock_.Advance(KvReplicaRules::kRefusalLasts - absl::Seconds(1));
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kFull);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kOtherMachine);
}

TEST_F(KvReplicaRulesTest, OneThatRefusesAfterAnotherDoesNotMakeThatFit) {
  const Member c = Box(3, "three");
  rules_.Hear(a_, News(kBudget, b_.incarnation));
  rules_.Hear(a_, News(kBudget, c.incarnation));
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kFull);
  EXPECT_EQ(Fitness(a_, c), ReplicaFitness::kFull);
  clock_.Advance(KvReplicaRules::kRefusalLasts / 2);
  rules_.Hear(a_, News(kBudget / 2, c.incarnation));
  clock_.Advance(KvReplicaRules::kRefusalLasts / 2);
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kOtherMachine) << "it is no longer sent anything";
  EXPECT_EQ(Fitness(a_, c), ReplicaFitness::kFull);
}

TEST_F(KvReplicaRulesTest, OnlySoManyRefusalsAreRemembered) {
  rules_.Hear(a_, News(kBudget, b_.incarnation));
  for (size_t i = 0; i < KvReplicaRules::kMostRefusals; ++i) {
    EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kFull);
    rules_.Hear(a_, News(kBudget, 1000 + i));
  }
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kOtherMachine);
}

TEST_F(KvReplicaRulesTest, WhoIsLostIsForgotten) {
  rules_.Hear(a_, News(kBudget, b_.incarnation));
  rules_.Hear(b_, News(kBudget / 8));
  rules_.Forget(b_);
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kOtherMachine);
  rules_.Hear(a_, News(kBudget, b_.incarnation));
  rules_.Forget(a_);
  EXPECT_EQ(Fitness(a_, b_), ReplicaFitness::kOtherMachine);
}

TEST_F(KvReplicaRulesTest, SaysWhenSomethingHasChanged) {
  EXPECT_FALSE(rules_.TakeChanged());
  rules_.NoteChange();
  EXPECT_TRUE(rules_.TakeChanged());
  EXPECT_FALSE(rules_.TakeChanged());
  rules_.Hear(a_, News(kBudget, b_.incarnation));
  EXPECT_TRUE(rules_.TakeChanged());
  clock_.Advance(2 * KvReplicaRules::kRefusalLasts);
  EXPECT_FALSE(rules_.TakeChanged()) << "the refusal lasts";
  rules_.Hear(a_, News(kBudget));
  EXPECT_TRUE(rules_.TakeChanged());
  clock_.Advance(KvReplicaRules::kRefusalLasts / 2);
  EXPECT_FALSE(rules_.TakeChanged());
  clock_.Advance(KvReplicaRules::kRefusalLasts / 2);
  EXPECT_TRUE(rules_.TakeChanged()) << "the refusal is over";
  EXPECT_FALSE(rules_.TakeChanged());
  rules_.Forget(a_);
  EXPECT_TRUE(rules_.TakeChanged());
}

}  // namespace
}  // namespace caravan
