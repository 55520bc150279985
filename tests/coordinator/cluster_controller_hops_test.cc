// How a ClusterController has hops joined, and what it does about those that cannot be.

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/coordinator/fake_cluster.h"

namespace caravan {
namespace {

TEST(ClusterControllerHopsTest, ActivationsGoByNcclBetweenCardsThatBothHaveIt) {
  FakeCluster cluster(2);
  FakeWorker* const a = cluster.Join("box-a", kWhole, false, Card("a", "2.28.9"));
  FakeWorker* const b = cluster.Join("box-b", kWhole, false, Card("b", "2.28.9"));
  a->TakeOrders();  // Welcome is among them
  const std::vector<v1::WorkerOrder> orders = b->TakeOrders();
  ASSERT_EQ(orders.size(), 2u);
  const v1::LoadStage& load = orders[1].load_stage();
  EXPECT_FALSE(load.has_next());
  EXPECT_EQ(load.previous().neighbour(), "worker 1 (box-a)");
  EXPECT_TRUE(load.previous().by_nccl());
  EXPECT_EQ(load.previous().why(), "both have NCCL 2.28.9, and they are on one machine");

  v1::WorkerReport invitation;
  invitation.mutable_hop_invitation()->set_plan_version(1);
  invitation.mutable_hop_invitation()->set_nccl_unique_id(std::string("\0\xff", 2));
  ASSERT_TRUE(cluster.Report(a, invitation).ok());
  const std::vector<v1::WorkerOrder> passed_on = b->TakeOrders();
  ASSERT_EQ(passed_on.size(), 1u);
  EXPECT_EQ(passed_on[0].join_hop().plan_version(), 1u);
  EXPECT_EQ(passed_on[0].join_hop().nccl_unique_id(), std::string("\0\xff", 2));

  // Nobody is after the last, and nobody wants those of another plan.
  ASSERT_TRUE(cluster.Report(b, invitation).ok());
  invitation.mutable_hop_invitation()->set_plan_version(2);
  ASSERT_TRUE(cluster.Report(a, invitation).ok());
  EXPECT_TRUE(a->TakeOrders().empty());
  EXPECT_TRUE(b->TakeOrders().empty());
}

v1::WorkerReport Unjoined(uint64_t plan_version, v1::HopEnd end, const std::string& message) {
  v1::WorkerReport report;
  report.mutable_failure()->set_plan_version(plan_version);
  // Of one that is for good otherwise.
  report.mutable_failure()->set_code(static_cast<int>(absl::StatusCode::kFailedPrecondition));
  report.mutable_failure()->set_message(message);
  report.mutable_failure()->set_unjoined(end);
  return report;
}

TEST(ClusterControllerHopsTest, AHopThatCannotBeJoinedGoesOverTcpUntilAnEndJoinsAnew) {
  FakeCluster cluster(3);
  FakeWorker* const a = cluster.Join("box-a", kWhole, false, Card("a", "2.28.9"));
  FakeWorker* const b = cluster.Join("box-b", kWhole, false, Card("b", "2.28.9"));
  FakeWorker* const c = cluster.Join("box-c", kWhole, false, Card("c", "2.28.9"));
  for (FakeWorker* const each : {a, b, c}) each->TakeOrders();
  const std::string why = "worker box-b: the hop from worker 1 (box-a) by NCCL: no way";
  ASSERT_TRUE(cluster.Report(b, Unjoined(1, v1::HOP_END_PREVIOUS, why)).ok());
  // At once, with the same stages: whoever still waits for the other end is to let go.
  for (FakeWorker* const each : {a, b, c}) {
    const std::vector<v1::WorkerOrder> orders = each->TakeOrders();
    ASSERT_EQ(orders.size(), 2u);
    EXPECT_EQ(orders[0].drop_stage().plan_version(), 1u);
    const v1::LoadStage& load = orders[1].load_stage();
    EXPECT_EQ(load.plan_version(), 2u);
    EXPECT_EQ(load.has_previous(), each != a);
    EXPECT_EQ(load.has_next(), each != c);
    EXPECT_EQ(load.previous().by_nccl(), each == c);
    EXPECT_EQ(load.next().by_nccl(), each == b);
    EXPECT_EQ(load.next().why() == why, each == a);
    EXPECT_EQ(load.previous().why() == why, each == b);
  }
  EXPECT_EQ(cluster.Status().pipeline_state(), "loading");
  EXPECT_FALSE(cluster.Status().workers(0).next().by_nccl());
  EXPECT_EQ(cluster.Status().workers(0).next().why(), why);
  EXPECT_TRUE(cluster.Status().workers(1).next().by_nccl());
  EXPECT_FALSE(cluster.Status().workers(2).has_next());
  // The next hop, told by its other end; and the first one is remembered.
  ASSERT_TRUE(cluster.Report(b, Unjoined(2, v1::HOP_END_NEXT, "no way either")).ok());
  EXPECT_EQ(cluster.Status().plan_version(), 3u);
  EXPECT_EQ(cluster.Status().workers(0).next().why(), why);
  EXPECT_EQ(cluster.Status().workers(1).next().why(), "no way either");
  for (FakeWorker* const each : {a, b, c}) cluster.Ready(each, 3);
  EXPECT_TRUE(cluster.Status().serving());
  // Another life of an end is tried anew.
  cluster.Gone(a);
  cluster.Join("box-a", kWhole, false, Card("a", "2.28.9"));
  const v1::GetStatusResponse status = cluster.Status();
  ASSERT_EQ(status.workers_size(), 3);
  for (const v1::WorkerStatus& worker : status.workers()) {
    const bool is_known =
        worker.name() == "box-b" && worker.next().neighbour() == "worker 3 (box-c)";
    EXPECT_EQ(worker.next().by_nccl(), worker.has_next() && !is_known) << worker.name();
  }
}

TEST(ClusterControllerHopsTest, AnUnjoinedHopThatIsNoneIsAFailureLikeOthers) {
  FakeCluster cluster(2);
  FakeWorker* const a = cluster.Join("box-a", kWhole, false, Card("a", "2.28.9"));
  cluster.Join("box-b", kWhole, false, Card("b", "2.28.9"));
  ASSERT_TRUE(cluster.Report(a, Unjoined(1, v1::HOP_END_PREVIOUS, "there is none")).ok());
  EXPECT_EQ(cluster.Status().pipeline_state(), "there is none");
  cluster.Advance(absl::Seconds(5));
  EXPECT_EQ(cluster.Status().plan_version(), 2u);
  EXPECT_TRUE(cluster.Status().workers(0).next().by_nccl());
}

}  // namespace
}  // namespace caravan
