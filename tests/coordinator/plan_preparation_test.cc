// A plan takes the place of one that serves: what is prepared meanwhile, when it changes, and what
// becomes of it if something comes between.

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_cluster.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// box-a serves plan 1 alone; box-b has come, and plan 2 is for both.
struct GrowingCluster {
  FakeCluster cluster;
  FakeWorker* a = cluster.Join("box-a");
  FakeWorker* b = nullptr;
  GrowingCluster() {
    cluster.Ready(a, 1);
    a->TakeOrders();
    b = cluster.Join("box-b");
    b->orders.erase(b->orders.begin());  // Welcome
  }
  /// The plan that is being prepared.
  uint64_t NextPlan() const {
    return cluster.Status().workers(1).preparation().progress().plan_version();
  }
  /// In which both are heard of.
  void SecondPasses() {
    cluster.Heartbeat(a);
    cluster.Heartbeat(b);
    cluster.Advance(absl::Seconds(1));
  }
  void PrepareBoth() {
    cluster.Prepared(a, 2);
    cluster.Prepared(b, 2);
  }
};

TEST(PlanPreparationTest, BothGetReadyWhileTheOldPlanServes) {
  GrowingCluster growing;
  const v1::PrepareStage of_a = OnlyPrepare(growing.a->TakeOrders());
  EXPECT_EQ(of_a.stage().plan_version(), 2u);
  EXPECT_EQ(*StageFromProto(of_a.stage().stage()), (StageSpec{0, 2, true, false}));
  EXPECT_EQ(of_a.stage().next_name(), "worker 2 (box-b)");
  // What its weights and its KV cache of 512 tokens leave.
  EXPECT_EQ(of_a.memory_bytes(), kWhole - 600 - 4 * 512 * 4);
  const v1::PrepareStage of_b = OnlyPrepare(growing.b->TakeOrders());
  EXPECT_EQ(*StageFromProto(of_b.stage().stage()), (StageSpec{2, 4, false, true}));

  growing.cluster.Progress(growing.b, 2, 100, 300);
  growing.cluster.Prepared(growing.a, 2);
  const v1::GetStatusResponse status = growing.cluster.Status();
  EXPECT_EQ(status.plan_version(), 1u);
  EXPECT_TRUE(status.serving());
  EXPECT_EQ(status.pipeline_state(), "serving; another plan is prepared by 1 of 2 workers");
  EXPECT_EQ(status.workers(0).state(), v1::WORKER_STATE_READY);
  EXPECT_TRUE(status.workers(0).preparation().done());
  EXPECT_EQ(status.workers(1).state(), v1::WORKER_STATE_SPARE);
  EXPECT_FALSE(status.workers(1).preparation().done());
  EXPECT_EQ(status.workers(1).preparation().progress().loaded_bytes(), 100u);
  EXPECT_EQ(status.workers(1).preparation().stage().first_layer(), 2u);
}

TEST(PlanPreparationTest, TheSwitchWaitsForTheStepsUnderWayAndJobsGoOn) {
  GrowingCluster growing;
  FakeCluster& cluster = growing.cluster;
  const std::unique_ptr<JobHandle> running = cluster.Submit(ToyJob(5, 3));
  const v1::Step under_way = cluster.WaitForStep(1);
  growing.a->TakeOrders();
  growing.b->TakeOrders();
  growing.PrepareBoth();
  EXPECT_TRUE(cluster.Status().serving());
  EXPECT_THAT(growing.a->orders, IsEmpty()) << "a step is under way";
  const std::unique_ptr<JobHandle> queued = cluster.Submit(ToyJob(4, 2));
  cluster.Deliver(1, under_way);
  cluster.WaitUntilQuiet();
  EXPECT_EQ(running->Next()->tokens.size(), 1u) << "what was under way counts";

  EXPECT_FALSE(cluster.Status().serving());
  EXPECT_EQ(OnlyLoad(growing.a->TakeOrders()).plan_version(), 2u);
  EXPECT_EQ(OnlyLoad(growing.b->TakeOrders()).plan_version(), 2u);
  cluster.Ready(growing.a, 2);
  cluster.Ready(growing.b, 2);
  cluster.RunDry(2);
  for (const auto& job : {running.get(), queued.get()}) {
    const absl::StatusOr<JobUpdate> update = job->Next();
    ASSERT_TRUE(update.ok()) << update.status();
    EXPECT_TRUE(update->finished);
  }
}

TEST(PlanPreparationTest, WithoutAStepUnderWayItChangesAtOnce) {
  GrowingCluster growing;
  growing.a->TakeOrders();
  growing.b->TakeOrders();
  growing.PrepareBoth();
  growing.cluster.WaitUntilQuiet();
  EXPECT_EQ(growing.cluster.Status().plan_version(), 2u);
}

TEST(PlanPreparationTest, ANewWorkerThatGoesAgainChangesNothing) {
  GrowingCluster growing;
  growing.a->TakeOrders();
  growing.cluster.Gone(growing.b);
  EXPECT_EQ(OnlyDrop(growing.a->TakeOrders()), 2u);
  EXPECT_EQ(growing.cluster.Status().pipeline_state(), "serving");
  EXPECT_EQ(growing.cluster.Status().plan_version(), 1u);
  // What it had said before it was told does no harm.
  growing.cluster.Prepared(growing.a, 2);
  EXPECT_EQ(growing.cluster.Status().plan_version(), 1u);
}

TEST(PlanPreparationTest, OneThatGoesWhenAllIsReadyChangesNothingEither) {
  GrowingCluster growing;
  const std::unique_ptr<JobHandle> job = growing.cluster.Submit(ToyJob(5, 3));
  const v1::Step under_way = growing.cluster.WaitForStep(1);
  growing.PrepareBoth();
  growing.cluster.Gone(growing.b);
  // The pipeline was told to run dry, and goes on.
  growing.cluster.Deliver(1, under_way);
  growing.cluster.RunDry(1);
  EXPECT_TRUE(job->Next()->finished);
}

TEST(PlanPreparationTest, AThirdWorkerBeginsTheNextPlanAnew) {
  GrowingCluster growing;
  growing.a->TakeOrders();
  growing.b->TakeOrders();
  FakeWorker* const c = growing.cluster.Join("box-c");
  for (FakeWorker* const worker : {growing.a, growing.b}) {
    const std::vector<v1::WorkerOrder> orders = worker->TakeOrders();
    ASSERT_EQ(orders.size(), 2u);
    EXPECT_EQ(orders[0].drop_stage().plan_version(), 2u);
    EXPECT_EQ(orders[1].prepare_stage().stage().plan_version(), 3u);
  }
  growing.PrepareBoth();
  EXPECT_EQ(growing.cluster.Status().pipeline_state(),
            "serving; another plan is prepared by 0 of 3 workers");
  EXPECT_EQ(c->TakeOrders().back().prepare_stage().stage().plan_version(), 3u);
}

TEST(PlanPreparationTest, APipelineThatRanDryForAPlanBeforeDoesNotChangeNow) {
  GrowingCluster growing;
  FakeCluster& cluster = growing.cluster;
  growing.PrepareBoth();
  const auto [plan, next] = cluster.TakeQuiet();  // which is on its way
  EXPECT_EQ(next, 2u);
  FakeWorker* const c = cluster.Join("box-c");
  const std::unique_ptr<JobHandle> job = cluster.Submit(ToyJob(5, 3));
  const v1::Step under_way = cluster.WaitForStep(1);
  for (FakeWorker* const worker : {growing.a, growing.b, c}) cluster.Prepared(worker, 3);
  cluster.controller().PipelineQuiet(plan, next);
  EXPECT_EQ(cluster.Status().plan_version(), 1u) << "a step is under way";
  cluster.Deliver(1, under_way);
  cluster.WaitUntilQuiet();
  EXPECT_EQ(cluster.Status().plan_version(), 3u);
  EXPECT_EQ(job->Next()->tokens.size(), 1u);
  EXPECT_EQ(cluster.driver().stats().steps, 1) << "none was dropped";
}

TEST(PlanPreparationTest, AWorkerThatServesIsLostAndTheOthersLoadWhatTheyCan) {
  GrowingCluster growing;
  growing.b->TakeOrders();
  growing.cluster.Gone(growing.a);
  const std::vector<v1::WorkerOrder> orders = growing.b->TakeOrders();
  ASSERT_EQ(orders.size(), 2u);
  EXPECT_EQ(orders[0].drop_stage().plan_version(), 2u);
  EXPECT_EQ(orders[1].load_stage().plan_version(), 3u);
  EXPECT_EQ(*StageFromProto(orders[1].load_stage().stage()), (StageSpec{0, 4, true, true}));
}

TEST(PlanPreparationTest, APreparationThatFailsIsTriedAgainLater) {
  GrowingCluster growing;
  growing.a->TakeOrders();
  growing.b->TakeOrders();
  growing.cluster.Fail(growing.b, 2, "worker box-b: the coordinator is slow",
                       absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(OnlyDrop(growing.a->TakeOrders()), 2u);
  EXPECT_EQ(OnlyDrop(growing.b->TakeOrders()), 2u);
  EXPECT_TRUE(growing.cluster.Status().serving());
  growing.cluster.Advance(absl::Seconds(4));
  growing.cluster.Heartbeat(growing.a);
  growing.cluster.Heartbeat(growing.b);
  EXPECT_THAT(growing.b->orders, IsEmpty());
  growing.cluster.Advance(absl::Seconds(1));
  EXPECT_EQ(OnlyPrepare(growing.b->TakeOrders()).stage().plan_version(), 3u);
}

TEST(PlanPreparationTest, EachFailureOfOnePlanIsFollowedByTwiceTheDelay) {
  GrowingCluster growing;
  for (const int delay : {5, 10, 20}) {
    growing.b->TakeOrders();
    growing.cluster.Fail(growing.b, growing.NextPlan(), "worker box-b: the coordinator is slow",
                         absl::StatusCode::kUnavailable);
    EXPECT_EQ(growing.cluster.Status().pipeline_state(),
              "serving; another plan failed, and is tried again later: worker box-b: the "
              "coordinator is slow");
    growing.b->TakeOrders();
    for (int second = 1; second < delay; ++second) growing.SecondPasses();
    EXPECT_THAT(growing.b->orders, IsEmpty()) << delay;
    growing.SecondPasses();
    EXPECT_TRUE(OnlyPrepare(growing.b->orders).has_stage());
  }
}

TEST(PlanPreparationTest, WhoServesAndHasNoRoomForMoreIsNotLeftOut) {
  GrowingCluster growing;
  for (const absl::StatusCode code :
       {absl::StatusCode::kFailedPrecondition, absl::StatusCode::kResourceExhausted}) {
    growing.cluster.Fail(growing.a, growing.NextPlan(), "worker box-a: no room", code);
    EXPECT_EQ(growing.cluster.Status().pipeline_state(),
              "serving; another plan failed, and is tried again later: worker box-a: no room");
    for (int second = 0; second < 10; ++second) growing.SecondPasses();
  }
}

TEST(PlanPreparationTest, APlanThatCannotBeLoadedGivesWayToTheOneBefore) {
  GrowingCluster growing;
  growing.PrepareBoth();
  growing.cluster.WaitUntilQuiet();
  growing.cluster.Ready(growing.b, 2);
  growing.a->TakeOrders();
  growing.b->TakeOrders();
  growing.cluster.Fail(growing.a, 2, "worker box-a: the next hop cannot be reached");
  EXPECT_EQ(OnlyDrop(growing.a->TakeOrders()), 2u);
  for (int second = 0; second < 5; ++second) growing.SecondPasses();
  const v1::LoadStage load = OnlyLoad(growing.a->TakeOrders());
  EXPECT_EQ(*StageFromProto(load.stage()), (StageSpec{0, 4, true, true}));
  growing.cluster.Ready(growing.a, load.plan_version());
  EXPECT_THAT(growing.cluster.Status().pipeline_state(),
              HasSubstr("serving; another plan failed, and is tried again later: "));
  // And later it is.
  growing.b->TakeOrders();
  for (int second = 5; second < 60; ++second) growing.SecondPasses();
  EXPECT_TRUE(OnlyPrepare(growing.b->TakeOrders()).has_stage());
}

TEST(PlanPreparationTest, ASplitThatCouldNotBeLoadedIsNotTriedEarlierForASpareThatComesOrGoes) {
  GrowingCluster growing;
  FakeCluster& cluster = growing.cluster;
  growing.PrepareBoth();
  cluster.WaitUntilQuiet();
  cluster.Fail(growing.a, 2, "worker box-a: the next hop cannot be reached");
  growing.a->TakeOrders();
  for (int second = 0; second < 5; ++second) growing.SecondPasses();
  const uint64_t before = OnlyLoad(growing.a->TakeOrders()).plan_version();
  growing.b->TakeOrders();
  // Too small to have a stage.
  FakeWorker* const spare = cluster.Join("box-c", 20);
  EXPECT_EQ(cluster.Status().workers(2).state(), v1::WORKER_STATE_SPARE);
  cluster.Advance(absl::ZeroDuration());
  cluster.Gone(spare);
  cluster.Advance(absl::ZeroDuration());
  EXPECT_EQ(cluster.Status().plan_version(), before);
  EXPECT_THAT(growing.a->TakeOrders(), IsEmpty());
  EXPECT_THAT(growing.b->TakeOrders(), IsEmpty());
  cluster.Ready(growing.a, before);
  EXPECT_TRUE(cluster.Status().serving());
  for (int second = 5; second < 60; ++second) {
    EXPECT_THAT(growing.b->TakeOrders(), IsEmpty());
    growing.SecondPasses();
  }
  EXPECT_TRUE(OnlyPrepare(growing.b->TakeOrders()).has_stage());
}

TEST(PlanPreparationTest, JobsWaitAsLongAsThePlanIsBeingLoaded) {
  GrowingCluster growing;
  const std::unique_ptr<JobHandle> job = growing.cluster.Submit(ToyJob(5, 3));
  const v1::Step under_way = growing.cluster.WaitForStep(1);
  growing.PrepareBoth();
  growing.cluster.Deliver(1, under_way);
  growing.cluster.WaitUntilQuiet();
  for (int second = 1; second <= 100; ++second) {
    growing.cluster.Progress(growing.b, 2, static_cast<uint64_t>(second), 200);
    growing.SecondPasses();
  }
  growing.cluster.Ready(growing.a, 2);
  growing.cluster.Ready(growing.b, 2);
  growing.cluster.RunDry(2);
  EXPECT_TRUE(job->Next().ok());
}

TEST(PlanPreparationTest, WhoCannotHaveItsStageIsLeftOutAndTheOldPlanServesOn) {
  GrowingCluster growing;
  growing.a->TakeOrders();
  growing.cluster.Fail(growing.b, 2, "worker box-b: no such directory",
                       absl::StatusCode::kNotFound);
  EXPECT_EQ(OnlyDrop(growing.a->TakeOrders()), 2u);
  EXPECT_EQ(growing.cluster.Status().plan_version(), 1u);
  EXPECT_EQ(growing.cluster.Status().pipeline_state(),
            "serving; left out: worker box-b: no such directory");
}

TEST(PlanPreparationTest, ACardHasNoMemoryBesideItsStage) {
  v1::Registration card;
  card.set_on_card(true);
  FakeCluster cluster;
  FakeWorker* const a = cluster.Join("box-a", uint64_t{1} << 30, false, card);
  cluster.Ready(a, 1);
  a->TakeOrders();
  cluster.Join("box-b", uint64_t{1} << 30);
  EXPECT_EQ(OnlyPrepare(a->TakeOrders()).memory_bytes(), 0u);
}

TEST(PlanPreparationTest, NorHasAStageThatOffloads) {
  FakeCluster cluster(1, SmallPackCost());
  FakeWorker* const a = cluster.Join("box-a", 1500, /*offloads=*/true);
  ASSERT_GT(a->TakeOrders().back().load_stage().expert_budget_bytes(), 0u);
  cluster.Ready(a, 1);
  cluster.Join("box-b", 1500, /*offloads=*/true);
  EXPECT_EQ(OnlyPrepare(a->TakeOrders()).memory_bytes(), 0u);
}

}  // namespace
}  // namespace caravan
