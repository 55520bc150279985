#include "coordinator/hop_rules.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/coordinator/fake_cluster.h"

namespace caravan {
namespace {

Member Worker(uint32_t id, const std::string& name, const v1::Registration& more) {
  Member member;
  member.id = WorkerId{id};
  member.registration = more;
  member.registration.set_name(name);
  return member;
}

/// The hop from worker 1 (box-a) to worker 2 (box-b).
v1::Hop HopBetween(const v1::Registration& a, const v1::Registration& b) {
  return HopRules().Make(Worker(1, "box-a", a), Worker(2, "box-b", b));
}

TEST(HopRulesTest, ActivationsGoByNcclBetweenCardsThatBothHaveIt) {
  const v1::Hop hop = HopBetween(Card("a", "2.28.9"), Card("b", "2.28.9"));
  EXPECT_EQ(hop.neighbour(), "worker 2 (box-b)");
  EXPECT_TRUE(hop.by_nccl());
  EXPECT_EQ(hop.why(), "both have NCCL 2.28.9, and they are on one machine");
}

TEST(HopRulesTest, OtherHopsGoOverTcpAndSayWhy) {
  const auto why = [](const v1::Registration& a, const v1::Registration& b) {
    const v1::Hop hop = HopBetween(a, b);
    EXPECT_EQ(hop.neighbour(), "worker 2 (box-b)");
    EXPECT_FALSE(hop.by_nccl());
    return hop.why();
  };
  EXPECT_EQ(why({}, {}), "worker 1 (box-a) has no card");
  EXPECT_EQ(why(Card("a", "2.28.9"), {}), "worker 2 (box-b) has no card");
  EXPECT_EQ(why(Card("a", ""), Card("b", "2.28.9")), "worker 1 (box-a) offers no NCCL");
  EXPECT_EQ(why(Card("a", "2.28.9"), Card("b", "2.27.3")),
            "worker 1 (box-a) has NCCL 2.28.9, worker 2 (box-b) has 2.27.3");
  EXPECT_EQ(why(Card("a", "2.28.9"), Card("a", "2.28.9")), "they share a card");
}

TEST(HopRulesTest, NcclGoesOnlyWhereNobodyElseReads) {
  const auto hop = [](const std::vector<std::string>& a, const std::vector<std::string>& b,
                      bool insists, bool other_insists = false) {
    v1::Registration first = Card("a", "2.28.9");
    v1::Registration second = Card("b", "2.28.9");
    first.set_machine("one");
    second.set_machine("another");
    for (const std::string& network : a) first.add_trusted_networks(network);
    for (const std::string& network : b) second.add_trusted_networks(network);
    first.set_requires_nccl(other_insists);
    second.set_requires_nccl(insists);
    return HopBetween(first, second);
  };
  EXPECT_FALSE(hop({}, {}, false).by_nccl());
  EXPECT_EQ(hop({}, {}, false).why(),
            "NCCL is not encrypted, and they share neither a machine nor a --trusted-network");
  EXPECT_FALSE(hop({"10.0.0.0/8"}, {}, false).by_nccl());
  EXPECT_FALSE(hop({"10.0.0.0/8"}, {"fd00::/8"}, false).by_nccl());
  const v1::Hop trusted = hop({"10.0.0.0/8"}, {"fd00::/8", "10.0.0.0/8"}, false);
  EXPECT_TRUE(trusted.by_nccl());
  EXPECT_EQ(trusted.why(), "both have NCCL 2.28.9, and both are in 10.0.0.0/8, which is trusted");
  EXPECT_FALSE(hop({}, {}, true).by_nccl()) << "the other end never agreed";
  const v1::Hop forced = hop({}, {}, true, true);
  EXPECT_TRUE(forced.by_nccl());
  EXPECT_EQ(forced.why(), "both have NCCL 2.28.9, and both insist on it");
}

TEST(HopRulesTest, WorkersOfUnknownMachinesAreNotOnOne) {
  v1::Registration a = Card("a", "2.28.9");
  a.clear_machine();
  v1::Registration b = Card("b", "2.28.9");
  b.clear_machine();
  EXPECT_EQ(WhyTrusted(a, b), "");
  EXPECT_FALSE(HopBetween(a, b).by_nccl());
}

TEST(HopRulesTest, AHopThatCouldNotBeJoinedGoesOverTcpUntilAnEndIsLost) {
  const Member a = Worker(1, "box-a", Card("a", "2.28.9"));
  const Member b = Worker(2, "box-b", Card("b", "2.28.9"));
  const Member c = Worker(3, "box-c", Card("c", "2.28.9"));
  for (const WorkerId lost : {a.id, b.id}) {
    HopRules rules;
    rules.RememberUnjoined(b.id, a.id, "no way");
    EXPECT_FALSE(rules.Make(a, b).by_nccl());
    EXPECT_EQ(rules.Make(a, b).why(), "no way");
    EXPECT_EQ(rules.Make(b, a).why(), "no way");
    EXPECT_TRUE(rules.Make(b, c).by_nccl());
    rules.Forget(c.id);
    EXPECT_FALSE(rules.Make(a, b).by_nccl());
    rules.Forget(lost);
    EXPECT_TRUE(rules.Make(a, b).by_nccl());
  }
}

}  // namespace
}  // namespace caravan
