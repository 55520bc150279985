// Whom a ClusterController makes plans without: workers that cannot have their stage, or are
// drained.

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_cluster.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(ClusterControllerRosterTest, AWorkerThatCannotLoadIsLeftOutUntilItJoinsAnew) {
  for (const absl::StatusCode code :
       {absl::StatusCode::kInvalidArgument, absl::StatusCode::kNotFound,
        absl::StatusCode::kFailedPrecondition, absl::StatusCode::kResourceExhausted,
        absl::StatusCode::kPermissionDenied, absl::StatusCode::kDataLoss}) {
    FakeCluster cluster(2);
    FakeWorker* const a = cluster.Join("box-a");
    FakeWorker* const b = cluster.Join("box-b");
    a->TakeOrders();
    b->TakeOrders();
    cluster.Fail(b, 1, "worker box-b: no such directory", code);
    // At once, and whole, to the other one.
    ASSERT_EQ(a->orders.size(), 2u) << absl::StatusCodeToString(code);
    EXPECT_EQ(*StageFromProto(a->orders[1].load_stage().stage()), (StageSpec{0, 4, true, true}));
    EXPECT_EQ(OnlyDrop(b->TakeOrders()), 1u);
    cluster.Ready(a, 2);
    EXPECT_EQ(cluster.Status().pipeline_state(),
              "serving; left out: worker box-b: no such directory");
    EXPECT_EQ(cluster.Status().workers(1).state(), v1::WORKER_STATE_SPARE);
    cluster.Heartbeat(b);
    cluster.Advance(absl::Seconds(4));
    EXPECT_TRUE(b->TakeOrders().empty());
    cluster.Gone(b);
    EXPECT_EQ(cluster.Status().pipeline_state(), "serving");
    FakeWorker* const again = cluster.Join("box-b");
    EXPECT_EQ(again->TakeOrders().size(), 2u);  // Welcome, LoadStage
  }
}

TEST(ClusterControllerRosterTest, WithEveryWorkerLeftOutAnotherOneIsWaitedFor) {
  FakeCluster cluster;
  FakeWorker* const a = cluster.Join("box-a");
  cluster.Fail(a, 1, "worker box-a: not the model", absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cluster.Status().pipeline_state(),
            "waiting for 1 more worker to join; left out: worker box-a: not the model");
  FakeWorker* const b = cluster.Join("box-b");
  b->orders.erase(b->orders.begin());  // Welcome
  EXPECT_EQ(OnlyLoad(b->TakeOrders()).plan_version(), 2u);
}

TEST(ClusterControllerRosterTest, KvBlocksOfAnotherSizeAreRefused) {
  FakeCluster cluster;
  FakeWorker* const a = cluster.Join("box-a");
  cluster.Ready(a, 1, 8, kKvBlockTokens / 2);
  EXPECT_FALSE(cluster.Status().serving());
  EXPECT_THAT(cluster.Status().pipeline_state(),
              HasSubstr("worker 1 (box-a) offers 8 KV blocks of 32 tokens"));
  FakeWorker* const b = cluster.Join("box-b");
  cluster.Ready(b, 2, 0);
  EXPECT_FALSE(cluster.Status().serving());
}

TEST(ClusterControllerRosterTest,
     AWorkerThatCannotReadItsDiskIsLeftOutWhereTheOthersCanDoWithoutIt) {
  FakeCluster cluster(2);
  FakeWorker* const a = cluster.Join("box-a");
  FakeWorker* const b = cluster.Join("box-b", kHalf);
  for (FakeWorker* worker : {a, b}) {
    cluster.Ready(worker, 1);
    worker->TakeOrders();
  }
  cluster.Fail(a, 1, "worker box-a: layer 1, expert 3", absl::StatusCode::kDataLoss);
  EXPECT_TRUE(cluster.Status().serving()) << "box-b alone is too small";
  cluster.Fail(b, 1, "worker box-b: layer 3, expert 5", absl::StatusCode::kDataLoss);
  EXPECT_EQ(a->TakeOrders().size(), 2u);  // DropStage, LoadStage
  EXPECT_EQ(OnlyDrop(b->TakeOrders()), 1u);
  cluster.Ready(a, 2);
  EXPECT_THAT(cluster.Status().pipeline_state(),
              HasSubstr("serving; left out: worker box-b: layer 3, expert 5"));
}

TEST(ClusterControllerRosterTest, ADrainedWorkerGetsNoStageUntilItJoinsAnewOrMayAgain) {
  FakeCluster cluster(2);
  FakeWorker* const a = cluster.Join("box-a");
  FakeWorker* const b = cluster.Join("box-b", kHalf);
  for (FakeWorker* worker : {a, b}) {
    cluster.Ready(worker, 1);
    worker->TakeOrders();
  }
  const absl::Status alone = cluster.controller().Drain("box-a", false).status();
  EXPECT_EQ(alone.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(alone.message()), AllOf(HasSubstr("cannot do without worker 1 (box-a)"),
                                                  HasSubstr("but the worker offers 900 B")));
  EXPECT_EQ(cluster.controller().Drain("box-z", false).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(cluster.Status().serving());

  EXPECT_EQ(*cluster.controller().Drain("2", false), b->id);
  EXPECT_EQ(OnlyPrepare(a->TakeOrders()).stage().plan_version(), 2u);
  EXPECT_TRUE(b->TakeOrders().empty()) << "it serves until the others can";
  cluster.Prepared(a, 2);
  cluster.WaitUntilQuiet();
  EXPECT_EQ(OnlyLoad(a->TakeOrders()).plan_version(), 2u);
  EXPECT_EQ(OnlyDrop(b->TakeOrders()), 1u);
  cluster.Ready(a, 2);
  EXPECT_EQ(cluster.Status().pipeline_state(), "serving; drained: worker 2 (box-b)");
  EXPECT_TRUE(cluster.Status().workers(1).drained());
  EXPECT_EQ(*cluster.controller().Drain("box-b", false), b->id) << "once more";
  EXPECT_EQ(cluster.Status().plan_version(), 2u);

  EXPECT_EQ(*cluster.controller().Drain("box-b", true), b->id);
  EXPECT_TRUE(cluster.Status().workers(1).has_preparation());
  EXPECT_EQ(*cluster.controller().Drain("box-b", false), b->id);
  EXPECT_FALSE(cluster.Status().workers(1).has_preparation());
  cluster.Gone(b);
  cluster.Join("box-b", kHalf);
  EXPECT_FALSE(cluster.Status().workers(1).drained());
  EXPECT_TRUE(cluster.Status().workers(1).has_preparation());
  cluster.Join("box-b");
  EXPECT_EQ(cluster.controller().Drain("box-b", false).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ClusterControllerRosterTest, AWorkerThatFindsNoPackGetsNoStageThatNeedsOne) {
  FakeCluster cluster(1, SmallPackCost());
  FakeWorker* const a = cluster.Join("box-a", 1500, /*offloads=*/true);
  a->TakeOrders();
  cluster.Fail(a, 1, "worker box-a: no local copy", absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(OnlyDrop(a->TakeOrders()), 1u);
  EXPECT_THAT(cluster.Status().pipeline_state(),
              AllOf(HasSubstr("but the worker offers 1.46 KiB"),
                    HasSubstr("; left out: worker box-a: no local copy")));
  // No other try, ...
  cluster.Advance(absl::Seconds(4));
  EXPECT_TRUE(a->TakeOrders().empty());
  // ... until there is a stage that fits its memory.
  FakeWorker* const b = cluster.Join("box-b", 1500, /*offloads=*/true);
  b->orders.erase(b->orders.begin());  // Welcome
  const v1::LoadStage of_a = OnlyLoad(a->TakeOrders());
  const v1::LoadStage of_b = OnlyLoad(b->TakeOrders());
  EXPECT_EQ(of_a.plan_version(), 2u);
  EXPECT_EQ(of_a.expert_budget_bytes(), 0u);
  EXPECT_EQ(of_b.expert_budget_bytes(), 0u);
  cluster.Ready(a, 2);
  cluster.Ready(b, 2);
  EXPECT_EQ(cluster.Status().pipeline_state(),
            "serving; not offloading: worker box-a: no local copy");
  // Joining anew, it is asked again.
  cluster.Gone(a);
  cluster.Gone(b);
  FakeWorker* const again = cluster.Join("box-a", 1500, /*offloads=*/true);
  again->orders.erase(again->orders.begin());  // Welcome
  EXPECT_GT(OnlyLoad(again->TakeOrders()).expert_budget_bytes(), 0u);
}

TEST(ClusterControllerRosterTest, AnOffloadingStageWithWrongBytesIsLeftOutForGood) {
  FakeCluster cluster(1, SmallPackCost());
  FakeWorker* const a = cluster.Join("box-a", 1500, /*offloads=*/true);
  a->TakeOrders();
  cluster.Fail(a, 1, "worker box-a: wrong hash", absl::StatusCode::kDataLoss);
  EXPECT_EQ(cluster.Status().pipeline_state(),
            "waiting for 1 more worker to join; left out: worker box-a: wrong hash");
}

}  // namespace
}  // namespace caravan
