#include "coordinator/kv_archives.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
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

/// Stages of two layers.
std::vector<RingMember> Ring(const std::vector<Member>& members) {
  std::vector<RingMember> ring;
  for (const Member& member : members) {
    const int first = 2 * static_cast<int>(ring.size());
    ring.push_back({member, {first, first + 2, ring.empty(), false, false}});
  }
  ring.back().stage.has_head = true;
  ring.back().stage.drafts = true;
  return ring;
}

std::vector<std::string> PeersOf(const v1::KvArchives& archives) {
  std::vector<std::string> names;
  for (const v1::Peer& peer : archives.peers()) names.push_back(peer.name());
  return names;
}

TEST(KvArchivesTest, ReplicasGoRoundTheRing) {
  const std::vector<v1::KvArchives> told =
      PlanKvArchives(Ring({Box(1), Box(2), Box(3)}), {Box(4)}, {Box(5)});
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
  std::vector<v1::KvArchives> told = PlanKvArchives(Ring({Box(1), same, Box(3)}), {}, {});
  EXPECT_EQ(told[0].replica().name(), "worker 3 (box-3)");
  EXPECT_EQ(told[1].replica().name(), "worker 3 (box-3)");
  EXPECT_EQ(told[2].incoming_size(), 2);
  EXPECT_EQ(told[1].incoming_size(), 0);
  // A spare on another machine rather than the next stage on this one, but that rather than nobody.
  told = PlanKvArchives(Ring({Box(1), same}), {Box(4)}, {});
  EXPECT_EQ(told[0].replica().name(), "worker 4 (box-4)");
  told = PlanKvArchives(Ring({Box(1), same}), {}, {Box(5)});
  EXPECT_EQ(told[0].replica().name(), "worker 2 (box-2)");
}

TEST(KvArchivesTest, OnlyThoseWithAnArchiveInTheFormatAreTold) {
  Member without = Box(2);
  without.registration.set_kv_archive_bytes(0);
  Member other_format = Box(3);
  other_format.registration.set_kv_dtype("F16");
  Member on_disk_only = Box(4);
  on_disk_only.registration.set_kv_replicates(false);
  const std::vector<v1::KvArchives> told =
      PlanKvArchives(Ring({Box(1), without, other_format, on_disk_only}), {}, {});
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
  const std::vector<v1::KvArchives> told = PlanKvArchives(Ring({Box(1)}), spares, {});
  EXPECT_EQ(told[0].replica().name(), "worker 2 (box-2)");
  EXPECT_EQ(told[0].peers_size(), 16);
  EXPECT_FALSE(PlanKvArchives(Ring({Box(1)}), {}, {Box(2)})[0].has_replica());
}

TEST(KvArchivesTest, InALongRingADrainedWorkerAndTheNearestAreAsked) {
  std::vector<Member> members;
  for (uint32_t id = 1; id <= 20; ++id) members.push_back(Box(id));
  const std::vector<std::string> asked =
      PeersOf(PlanKvArchives(Ring(members), {Box(21)}, {Box(22)})[9]);
  ASSERT_THAT(asked, SizeIs(16));
  EXPECT_EQ(asked[0], "worker 22 (box-22)");
  EXPECT_EQ(asked[1], "worker 21 (box-21)");
  EXPECT_EQ(asked[2], "worker 11 (box-11)");
  EXPECT_EQ(asked[3], "worker 9 (box-9)");
  EXPECT_EQ(asked[4], "worker 12 (box-12)");
  EXPECT_EQ(asked[15], "worker 3 (box-3)") << "seven on each side";
}

}  // namespace
}  // namespace caravan
