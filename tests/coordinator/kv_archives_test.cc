#include "coordinator/kv_archives.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

/// Replicates, on a machine of its own.
Member Box(uint32_t id) {
  Member member;
  member.id = WorkerId{id};
  member.incarnation = 100 + id;
  member.registration.set_name(absl::StrCat("box-", id));
  member.registration.set_address(absl::StrCat("10.0.0.", id, ":7000"));
  member.registration.set_machine(absl::StrCat("machine ", id));
  member.registration.set_kv_archive_bytes(1 << 20);
  member.registration.set_kv_replicates(true);
  member.identity = absl::StrCat("worker/box-", id);
  return member;
}

constexpr int64_t kBlockBytes = 1 << 10;  // of a stage

/// Stages of two layers.
std::vector<RingMember> Ring(const std::vector<Member>& members) {
  std::vector<RingMember> ring;
  for (const Member& member : members) {
    const int first = 2 * static_cast<int>(ring.size());
    ring.push_back({member, {first, first + 2, ring.empty(), false, false}, kBlockBytes});
  }
  ring.back().stage.has_head = true;
  ring.back().stage.drafts = true;
  return ring;
}

std::vector<v1::KvArchives> Plan(const std::vector<Member>& ring,
                                 const std::vector<Member>& spares = {},
                                 const std::vector<Member>& others = {}) {
  return PlanKvArchives({Ring(ring), spares, others}, KvReplicaRules(&SteadyClock()));
}

/// Says that the member has so much room, and that who has `refused_by` takes nothing from it.
void Say(KvReplicaRules& rules, const Member& member, int64_t room_bytes, uint64_t refused_by = 0) {
  v1::KvArchiveNews news;
  news.set_room_bytes(static_cast<uint64_t>(room_bytes));
  news.set_plan_version(1);
  news.set_refused_by(refused_by);
  rules.Hear(member, news);
}

std::vector<std::string> PeersOf(const v1::KvArchives& archives) {
  std::vector<std::string> names;
  for (const v1::Peer& peer : archives.peers()) names.push_back(peer.name());
  return names;
}

TEST(KvArchivesTest, ReplicasGoRoundTheRing) {
  const std::vector<v1::KvArchives> told = Plan({Box(1), Box(2), Box(3)}, {Box(4)}, {Box(5)});
  ASSERT_THAT(told, SizeIs(3));
  EXPECT_EQ(told[0].replica().name(), "worker 2 (box-2)");
  EXPECT_EQ(told[0].replica().address(), "10.0.0.2:7000");
  EXPECT_EQ(told[0].replica().incarnation(), 102u);
  EXPECT_EQ(told[0].replica().identity(), "worker/box-2");
  EXPECT_EQ(told[1].replica().name(), "worker 3 (box-3)");
  EXPECT_EQ(told[2].replica().name(), "worker 1 (box-1)");
  ASSERT_EQ(told[0].incoming_size(), 1);
  EXPECT_EQ(told[0].incoming(0).first_layer(), 4u);
  EXPECT_EQ(told[0].incoming(0).num_layers(), 3u) << "with the layer that drafts";
  EXPECT_EQ(told[1].incoming(0).first_layer(), 0u);
  EXPECT_EQ(told[1].incoming(0).num_layers(), 2u);
  EXPECT_THAT(PeersOf(told[1]), ElementsAre("worker 5 (box-5)", "worker 4 (box-4)",
                                            "worker 3 (box-3)", "worker 1 (box-1)"));
}

TEST(KvArchivesTest, AnotherMachineIsPreferred) {
  Member same = Box(2);
  same.registration.set_machine("machine 1");
  std::vector<v1::KvArchives> told = Plan({Box(1), same, Box(3)});
  EXPECT_EQ(told[0].replica().name(), "worker 3 (box-3)");
  EXPECT_EQ(told[1].replica().name(), "worker 3 (box-3)");
  EXPECT_EQ(told[2].incoming_size(), 2);
  EXPECT_EQ(told[1].incoming_size(), 0);
  // A spare on another machine rather than the next stage on this one, but that rather than nobody.
  told = Plan({Box(1), same}, {Box(4)});
  EXPECT_EQ(told[0].replica().name(), "worker 4 (box-4)");
  told = Plan({Box(1), same}, {}, {Box(5)});
  EXPECT_EQ(told[0].replica().name(), "worker 2 (box-2)");
}

TEST(KvArchivesTest, OnlyThoseWithAnArchiveInTheFormatAreTold) {
  Member without = Box(2);
  without.registration.set_kv_archive_bytes(0);
  Member other_format = Box(3);
  other_format.registration.set_kv_dtype("F16");
  Member on_disk_only = Box(4);
  on_disk_only.registration.set_kv_replicates(false);
  const std::vector<v1::KvArchives> told = Plan({Box(1), without, other_format, on_disk_only});
  EXPECT_EQ(told[0].replica().name(), "worker 4 (box-4)");
  EXPECT_THAT(PeersOf(told[0]), ElementsAre("worker 4 (box-4)"));
  EXPECT_FALSE(told[2].has_replica());
  EXPECT_THAT(PeersOf(told[2]), IsEmpty());
  EXPECT_FALSE(told[3].has_replica());
  EXPECT_THAT(PeersOf(told[3]), ElementsAre("worker 1 (box-1)"));
  EXPECT_EQ(told[3].incoming_size(), 1);
}

TEST(KvArchivesTest, ALoneStageSendsToASpareAndNobodyIsAskedWithoutEnd) {
  std::vector<Member> spares;
  for (uint32_t id = 2; id < 40; ++id) spares.push_back(Box(id));
  const std::vector<v1::KvArchives> told = Plan({Box(1)}, spares);
  EXPECT_EQ(told[0].replica().name(), "worker 2 (box-2)");
  EXPECT_EQ(told[0].peers_size(), 16);
  EXPECT_FALSE(Plan({Box(1)}, {}, {Box(2)})[0].has_replica());
}

TEST(KvArchivesTest, InALongRingADrainedWorkerAndTheNearestAreAsked) {
  std::vector<Member> members;
  for (uint32_t id = 1; id <= 20; ++id) members.push_back(Box(id));
  const std::vector<std::string> asked = PeersOf(Plan(members, {Box(21)}, {Box(22)})[9]);
  ASSERT_THAT(asked, SizeIs(16));
  EXPECT_EQ(asked[0], "worker 22 (box-22)");
  EXPECT_EQ(asked[1], "worker 21 (box-21)");
  EXPECT_EQ(asked[2], "worker 11 (box-11)");
  EXPECT_EQ(asked[3], "worker 9 (box-9)");
  EXPECT_EQ(asked[4], "worker 12 (box-12)");
  EXPECT_EQ(asked[15], "worker 3 (box-3)") << "seven on each side";
}

TEST(KvArchivesTest, WhoKeepsAReplicaNeedsRoomForIt) {
  // Of each block it holds its own layers and the sender's, so 16 blocks.
  Member small = Box(2);
  small.registration.set_kv_archive_bytes(32 * kBlockBytes);
  EXPECT_EQ(Plan({Box(1), small})[0].replica_blocks(), 16u);
  EXPECT_EQ(Plan({Box(1)}, {small})[0].replica_blocks(), 32u);
  // With less than eight it is of no use.
  small.registration.set_kv_archive_bytes(15 * kBlockBytes);
  EXPECT_FALSE(Plan({Box(1), small})[0].has_replica());
  EXPECT_TRUE(Plan({Box(1)}, {small})[0].has_replica());
  EXPECT_EQ(Plan({Box(1), small}, {Box(3)})[0].replica().name(), "worker 3 (box-3)");
  // Room that one stage's replica takes the next has not.
  small.registration.set_kv_archive_bytes(23 * kBlockBytes);
  Member same_1 = Box(1);
  Member same_3 = Box(3);
  for (Member* const each : {&same_1, &same_3}) each->registration.set_machine("one");
  const std::vector<v1::KvArchives> told = Plan({same_1, same_3, small});
  EXPECT_EQ(told[0].replica().name(), "worker 2 (box-2)");
  EXPECT_EQ(told[1].replica().name(), "worker 1 (box-1)") << "on its machine, but with room";
  EXPECT_EQ(told[2].incoming_size(), 1);
  EXPECT_EQ(told[0].incoming_size(), 2) << "the third stage's is there too";
  EXPECT_EQ(told[2].replica_blocks(), (1u << 20) / (3 * kBlockBytes));
}

TEST(KvArchivesTest, OneThatIsFullOrRefusesGivesWayToAnother) {
  const std::vector<Member> ring = {Box(1), Box(2), Box(3)};
  SimulatedClock clock;
  KvReplicaRules rules(&clock);
  const auto plan = [&](const std::vector<Member>& spares = {}) {
    return PlanKvArchives({Ring(ring), spares, {}}, rules);
  };
  Say(rules, ring[1], (1 << 18) - 1);  // less than a quarter
  EXPECT_EQ(plan()[0].replica().name(), "worker 3 (box-3)");
  EXPECT_EQ(plan()[2].replica().name(), "worker 1 (box-1)");
  Say(rules, ring[1], 1 << 18);
  EXPECT_EQ(plan()[0].replica().name(), "worker 2 (box-2)");
  // One that refuses one sender may take another's.
  Say(rules, ring[0], 1 << 20, ring[1].incarnation);
  EXPECT_EQ(plan()[0].replica().name(), "worker 3 (box-3)");
  EXPECT_EQ(PlanKvArchives({Ring({Box(3), Box(2)}), {}, {}}, rules)[0].replica().name(),
            "worker 2 (box-2)");
  // Where all do, the first is tried again rather than nobody.
  Say(rules, ring[0], 1 << 20, ring[2].incarnation);
  EXPECT_EQ(plan()[0].replica().name(), "worker 2 (box-2)");
  EXPECT_EQ(plan({Box(4)})[0].replica().name(), "worker 4 (box-4)");
}

TEST(KvArchivesTest, WhoKeepsAReplicaGoesOnUnlessAnotherIsFitter) {
  Member same = Box(2);
  same.registration.set_machine("machine 1");
  const std::vector<Member> ring = {Box(1), same};
  SimulatedClock clock;
  KvReplicaRules rules(&clock);
  std::vector<v1::KvArchives> told;
  const auto renew = [&](const std::vector<Member>& spares) {
    told = PlanKvArchives({Ring(ring), spares, {}}, rules, told);
    return told[0].replica().name();
  };
  EXPECT_EQ(renew({}), "worker 2 (box-2)");
  EXPECT_EQ(told[1].incoming_size(), 1);
  EXPECT_EQ(renew({Box(5)}), "worker 5 (box-5)") << "on another machine";
  EXPECT_EQ(told[1].incoming_size(), 0);
  EXPECT_EQ(told[1].replica().name(), "worker 5 (box-5)");
  EXPECT_EQ(told[0].replica_blocks(), (1u << 20) / (2 * kBlockBytes)) << "of both stages";
  EXPECT_EQ(renew({Box(4), Box(5)}), "worker 5 (box-5)") << "though another comes first";
  EXPECT_EQ(renew({Box(4)}), "worker 4 (box-4)") << "in place of one that is lost";
  EXPECT_EQ(renew({}), "worker 2 (box-2)");
  // After a refusal it does not come back at once.
  renew({Box(4)});
  Say(rules, Box(1), 1 << 20, Box(4).incarnation);
  EXPECT_EQ(renew({Box(4)}), "worker 2 (box-2)");
  Say(rules, Box(1), 1 << 20);
  EXPECT_EQ(renew({Box(4)}), "worker 2 (box-2)");
  clock.Advance(KvReplicaRules::kRefusalLasts);
  EXPECT_EQ(renew({Box(4)}), "worker 4 (box-4)");
}

TEST(KvArchivesTest, TellsWhetherThereIsAnythingToBeTold) {
  std::vector<v1::KvArchives> a = Plan({Box(1), Box(2)});
  std::vector<v1::KvArchives> b = Plan({Box(1), Box(2)}, {Box(3)});
  EXPECT_TRUE(SameReplica(a[0], b[0])) << "who is asked for blocks is said with the plan";
  EXPECT_FALSE(SameReplica(a[0], Plan({Box(1), Box(3)})[0]));
  b[0].clear_incoming();
  EXPECT_FALSE(SameReplica(a[0], b[0]));
  a[0].clear_replica();
  b[0].clear_replica();
  EXPECT_TRUE(SameReplica(b[0], {}));
  EXPECT_FALSE(SameReplica(a[0], {}));
}

}  // namespace
}  // namespace caravan
