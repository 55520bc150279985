// What a ClusterController does about workers that are lost, and stages and hops that fail.

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_cluster.h"

namespace caravan {
namespace {

TEST(ClusterControllerLossTest, AWorkerLostWhileServingIsReplacedAndItsJobsGoOn) {
  ServingPair pair;
  const JobSpec spec = ToyJob(5, 3);
  const std::unique_ptr<JobHandle> job = pair.cluster.Submit(spec);
  pair.cluster.Deliver(1, pair.cluster.WaitForStep(1));
  pair.cluster.WaitForStep(1);
  pair.cluster.Gone(pair.b);
  EXPECT_TRUE(pair.b->hung_up);
  EXPECT_FALSE(pair.a->hung_up);
  const std::vector<v1::WorkerOrder> orders = pair.a->TakeOrders();
  ASSERT_EQ(orders.size(), 2u);
  EXPECT_EQ(orders[0].drop_stage().plan_version(), 1u);
  EXPECT_EQ(orders[1].load_stage().plan_version(), 2u);
  EXPECT_EQ(*StageFromProto(orders[1].load_stage().stage()), (StageSpec{0, 4, true, true}));
  EXPECT_TRUE(pair.b->TakeOrders().empty());

  pair.cluster.Ready(pair.a, 2);
  EXPECT_TRUE(pair.cluster.Status().serving());
  pair.cluster.RunDry(2);
  const absl::StatusOr<JobUpdate> all = job->Next();
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_TRUE(all->finished);
  std::vector<int32_t> reply;
  for (const ScoredToken& token : all->tokens) reply.push_back(token.token_id);
  EXPECT_EQ(reply, ToyModel().Reply(spec));
}

TEST(ClusterControllerLossTest, AWorkerLostWhileLoadingIsReplacedAtOnce) {
  FakeCluster cluster(2);
  FakeWorker* const a = cluster.Join("box-a");
  FakeWorker* const b = cluster.Join("box-b");
  const std::unique_ptr<JobHandle> queued = cluster.Submit(ToyJob(5, 3));
  cluster.Ready(a, 1);
  a->TakeOrders();
  cluster.Gone(b);
  const std::vector<v1::WorkerOrder> orders = a->TakeOrders();
  ASSERT_EQ(orders.size(), 2u);
  EXPECT_EQ(orders[0].drop_stage().plan_version(), 1u);
  EXPECT_EQ(orders[1].load_stage().plan_version(), 2u);
  cluster.Ready(a, 2);
  cluster.RunDry(2);
  EXPECT_TRUE(queued->Next().ok());  // A job that only waited is not failed.
}

TEST(ClusterControllerLossTest, AllWorkersLostWaitsForOne) {
  ServingPair pair;
  pair.cluster.Gone(pair.a);
  pair.cluster.Gone(pair.b);
  EXPECT_EQ(pair.cluster.Status().pipeline_state(), "waiting for 1 more worker to join");
  EXPECT_EQ(pair.cluster.Status().plan_version(), 0u);
  pair.cluster.Join("box-c");
  EXPECT_EQ(pair.cluster.Status().pipeline_state(), "loading");
}

TEST(ClusterControllerLossTest, AFailedStageIsTriedAgainAfterADelay) {
  ServingPair pair;
  const std::unique_ptr<JobHandle> job = pair.cluster.Submit(ToyJob(5, 3));
  pair.cluster.WaitForStep(1);
  pair.cluster.Fail(pair.a, 1, "worker box-a: the next hop is lost");
  EXPECT_EQ(pair.cluster.driver().List()[0].state(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(OnlyDrop(pair.a->TakeOrders()), 1u);
  EXPECT_EQ(OnlyDrop(pair.b->TakeOrders()), 1u);
  pair.cluster.Advance(absl::Seconds(5) - absl::Nanoseconds(1));
  EXPECT_TRUE(pair.a->TakeOrders().empty());
  EXPECT_EQ(pair.cluster.Status().pipeline_state(), "worker box-a: the next hop is lost");
  pair.cluster.Advance(absl::Nanoseconds(1));
  EXPECT_EQ(OnlyLoad(pair.a->TakeOrders()).plan_version(), 2u);
  EXPECT_EQ(OnlyLoad(pair.b->TakeOrders()).plan_version(), 2u);
}

TEST(ClusterControllerLossTest, AWorkerThatMayLoadTheNextTimeIsTriedAgain) {
  FakeCluster cluster;
  FakeWorker* const a = cluster.Join("box-a");
  a->TakeOrders();
  cluster.Fail(a, 1, "the coordinator is slow", absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(OnlyDrop(a->TakeOrders()), 1u);
  cluster.Advance(absl::Seconds(5));
  EXPECT_EQ(OnlyLoad(a->TakeOrders()).plan_version(), 2u);
  // A loaded stage that fails lost its next hop, whatever that one said.
  cluster.Ready(a, 2);
  cluster.Fail(a, 2, "the next hop is lost", absl::StatusCode::kFailedPrecondition);
  a->TakeOrders();
  cluster.Advance(absl::Seconds(5));
  EXPECT_EQ(OnlyLoad(a->TakeOrders()).plan_version(), 3u);
}

TEST(ClusterControllerLossTest, ALostWorkerEndsTheDelayThatItsNeighbourBegan) {
  ServingPair pair;
  pair.cluster.Fail(pair.a, 1, "worker box-a: the next hop is lost");
  pair.a->TakeOrders();
  pair.cluster.Gone(pair.b);
  EXPECT_EQ(OnlyLoad(pair.a->TakeOrders()).plan_version(), 2u);
}

TEST(ClusterControllerLossTest, AFirstHopThatCannotBeOpenedIsTriedAgain) {
  FakeCluster cluster;
  cluster.RefuseFirstHops(absl::UnavailableError("first worker 10.0.0.1:7000: refused"));
  FakeWorker* const a = cluster.Join("box-a");
  a->TakeOrders();
  cluster.Ready(a, 1);
  EXPECT_EQ(OnlyDrop(a->TakeOrders()), 1u);
  EXPECT_EQ(cluster.Status().pipeline_state(), "first worker 10.0.0.1:7000: refused");
  cluster.RefuseFirstHops(absl::OkStatus());
  cluster.Advance(absl::Seconds(5));
  EXPECT_EQ(OnlyLoad(a->TakeOrders()).plan_version(), 2u);
  cluster.Ready(a, 2);
  EXPECT_TRUE(cluster.Status().serving());
}

TEST(ClusterControllerLossTest, ADepartedWorkerIsLostAtOnce) {
  ServingPair pair;
  v1::WorkerReport departure;
  departure.mutable_departure();
  EXPECT_TRUE(pair.cluster.Report(pair.b, departure).ok());
  EXPECT_TRUE(pair.b->hung_up);
  EXPECT_EQ(pair.a->TakeOrders().size(), 2u);  // DropStage, LoadStage
  ASSERT_EQ(pair.cluster.Status().workers_size(), 1);
  pair.cluster.Gone(pair.b);  // Its call ends afterwards: nothing more happens.
  EXPECT_TRUE(pair.a->TakeOrders().empty());
}

TEST(ClusterControllerLossTest, SilenceIsALoss) {
  ServingPair pair;
  pair.cluster.Advance(absl::Seconds(3));
  pair.cluster.Heartbeat(pair.a);
  pair.cluster.Advance(absl::Seconds(2));  // b: the whole timeout, and not longer
  EXPECT_EQ(pair.cluster.Status().workers_size(), 2);
  pair.cluster.Advance(absl::Milliseconds(1));
  ASSERT_EQ(pair.cluster.Status().workers_size(), 1);
  EXPECT_EQ(pair.cluster.Status().workers(0).name(), "box-a");
  EXPECT_TRUE(pair.b->hung_up);
  EXPECT_EQ(pair.a->TakeOrders().size(), 2u);  // DropStage, LoadStage
  v1::WorkerReport late;
  late.mutable_heartbeat();
  EXPECT_EQ(pair.cluster.Report(pair.b, late).code(), absl::StatusCode::kAborted);
}

TEST(ClusterControllerLossTest, AStaleIncarnationIsAborted) {
  ServingPair pair;
  FakeWorker stale = *pair.a;
  stale.incarnation += 500;
  v1::WorkerReport failure;
  failure.mutable_failure()->set_plan_version(1);
  EXPECT_EQ(pair.cluster.Report(&stale, failure).code(), absl::StatusCode::kAborted);
  pair.cluster.Gone(&stale);
  EXPECT_TRUE(pair.cluster.Status().serving());
}

TEST(ClusterControllerLossTest, ReportsOfAnOldPlanAreIgnored) {
  ServingPair pair;
  pair.cluster.Gone(pair.b);
  pair.a->TakeOrders();
  pair.cluster.Ready(pair.a, 1);
  EXPECT_FALSE(pair.cluster.Status().serving());
  pair.cluster.Fail(pair.a, 1, "of the past");
  EXPECT_EQ(pair.cluster.Status().plan_version(), 2u);
  v1::WorkerReport progress;
  progress.mutable_progress()->set_plan_version(1);
  progress.mutable_progress()->set_loaded_bytes(77);
  EXPECT_TRUE(pair.cluster.Report(pair.a, progress).ok());
  EXPECT_EQ(pair.cluster.Status().workers(0).loaded_bytes(), 0u);
  pair.cluster.controller().PipelineBroken(1, absl::UnavailableError("of the past"));
  EXPECT_EQ(pair.cluster.Status().pipeline_state(), "loading");
  EXPECT_TRUE(pair.a->TakeOrders().empty());
}

}  // namespace
}  // namespace caravan
