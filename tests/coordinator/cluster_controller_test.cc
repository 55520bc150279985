#include "coordinator/cluster_controller.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/kv_block_name.h"
#include "cluster/protocol_version.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_cluster.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

TEST(ClusterControllerTest, WelcomesAWorker) {
  FakeCluster cluster(2);
  FakeWorker* const a = cluster.Join("box-a");
  ASSERT_EQ(a->orders.size(), 1u);
  EXPECT_EQ(a->orders[0].welcome().worker_id(), Number(a->id));
  EXPECT_EQ(a->orders[0].welcome().heartbeat_interval_ms(), 2500u);
  EXPECT_EQ(a->orders[0].welcome().coordinator_incarnation(), kCoordinator);
}

TEST(ClusterControllerTest, WaitsForEnoughWorkersAndSaysHowManyAreMissing) {
  FakeCluster cluster(3);
  EXPECT_EQ(cluster.Status().pipeline_state(), "waiting for workers to join");
  cluster.Join("box-a");
  EXPECT_EQ(cluster.Status().pipeline_state(), "waiting for 2 more workers to join");
  cluster.Join("box-b");
  EXPECT_EQ(cluster.Status().pipeline_state(), "waiting for 1 more worker to join");
  EXPECT_EQ(cluster.Status().state(), v1::PIPELINE_STATE_WAITING);
  EXPECT_EQ(cluster.Status().plan_version(), 0u);
  cluster.Join("box-c");
  EXPECT_EQ(cluster.Status().pipeline_state(), "loading");
  EXPECT_EQ(cluster.Status().state(), v1::PIPELINE_STATE_LOADING);
  EXPECT_EQ(cluster.Status().plan_version(), 1u);
}

TEST(ClusterControllerTest, TellsEachStageWhatToLoadAndWhoIsNext) {
  FakeCluster cluster(2);
  FakeWorker* const a = cluster.Join("box-a");
  a->TakeOrders();
  FakeWorker* const b = cluster.Join("box-b");
  b->orders.erase(b->orders.begin());  // Welcome
  const v1::LoadStage first = OnlyLoad(a->TakeOrders());
  const v1::LoadStage second = OnlyLoad(b->TakeOrders());
  EXPECT_EQ(first.plan_version(), 1u);
  EXPECT_EQ(second.plan_version(), 1u);
  EXPECT_EQ(*StageFromProto(first.stage()), (StageSpec{0, 2, true, false}));
  EXPECT_EQ(*StageFromProto(second.stage()), (StageSpec{2, 4, false, true}));
  EXPECT_EQ(first.next_address(), b->address);
  EXPECT_EQ(first.next_incarnation(), b->incarnation);
  EXPECT_EQ(second.next_address(), "");  // the coordinator
  EXPECT_EQ(first.model().fingerprint(), 99u);
  EXPECT_EQ(first.max_step_tokens(), 32u);
  EXPECT_EQ(first.next_name(), "worker 2 (box-b)");
  EXPECT_EQ(first.kv_budget_bytes(), 2 * 512 * 4u);  // two layers, kv_tokens, f32
}

TEST(ClusterControllerTest, AWorkerIsToldWhoElseMayHaveFiles) {
  FakeCluster cluster(3);
  v1::Registration sharing;
  sharing.set_shares_files(true);
  FakeWorker* const a = cluster.Join("box-a", kWhole, false, sharing, "worker/box-a");
  FakeWorker* const b = cluster.Join("box-b", kWhole, false, sharing);
  FakeWorker* const c = cluster.Join("box-c");
  const v1::LoadStage of_a = a->TakeOrders().back().load_stage();
  ASSERT_EQ(of_a.model_sources_size(), 1);  // not itself, nor who shares none
  EXPECT_EQ(of_a.model_sources(0).name(), "worker 2 (box-b)");
  EXPECT_EQ(of_a.model_sources(0).incarnation(), b->incarnation);
  const v1::LoadStage of_c = c->TakeOrders().back().load_stage();
  ASSERT_EQ(of_c.model_sources_size(), 2);
  EXPECT_EQ(of_c.model_sources(0).name(), "worker 1 (box-a)");
  EXPECT_EQ(of_c.model_sources(0).incarnation(), a->incarnation);
  EXPECT_EQ(of_c.model_sources(0).identity(), "worker/box-a");
  EXPECT_FALSE(of_c.model_sources(0).address().empty());
}

TEST(ClusterControllerTest, AWorkerOfAnotherVersionOrModelDoesNotJoin) {
  FakeCluster cluster;
  v1::Registration registration;
  registration.set_protocol_version(kProtocolVersion + 1);
  absl::Status status = cluster.TryJoin(registration);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(),
              HasSubstr(absl::StrCat("speaks version ", kProtocolVersion + 1,
                                     " of the protocol, and the coordinator ", kProtocolVersion)));
  registration.set_protocol_version(kProtocolVersion);
  registration.set_model_fingerprint(0xabc);
  status = cluster.TryJoin(registration);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("is not the coordinator's model (fingerprint "
                                          "0000000000000abc"));
  EXPECT_THAT(cluster.Status().workers(), IsEmpty());
}

TEST(ClusterControllerTest, EachStageIsToldWhoseStepsItTakes) {
  FakeCluster cluster(2);
  FakeWorker* const a = cluster.Join("box-a", kWhole, false, {}, "worker/a");
  FakeWorker* const b = cluster.Join("box-b", kWhole, false, {}, "worker/b");
  const v1::LoadStage first = a->TakeOrders().back().load_stage();
  EXPECT_EQ(first.sender_incarnation(), kCoordinator);
  EXPECT_EQ(first.sender_identity(), "coordinator/c");
  EXPECT_EQ(first.next_identity(), "worker/b");
  const v1::LoadStage second = b->TakeOrders().back().load_stage();
  EXPECT_EQ(second.sender_incarnation(), a->incarnation);
  EXPECT_EQ(second.sender_identity(), "worker/a");
  EXPECT_EQ(second.next_identity(), "");
}

TEST(ClusterControllerTest, EachStageIsToldOfTheOthersArchives) {
  v1::Registration archive;
  archive.set_kv_archive_bytes(1 << 20);
  archive.set_kv_replicates(true);
  FakeCluster cluster(2);
  testing::internal::CaptureStderr();
  FakeWorker* const a = cluster.Join("box-a", kWhole, false, archive);
  FakeWorker* const b = cluster.Join("box-b", kWhole, false, archive);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), Not(HasSubstr("kv_no_replica")));
  const v1::LoadStage first = a->TakeOrders().back().load_stage();
  const v1::LoadStage second = b->TakeOrders().back().load_stage();
  ASSERT_EQ(first.kv_archives().peers_size(), 1);
  EXPECT_EQ(first.kv_archives().peers(0).address(), b->address);
  EXPECT_EQ(first.kv_archives().replica().incarnation(), b->incarnation);
  ASSERT_EQ(first.kv_archives().incoming_size(), 1);
  EXPECT_EQ(first.kv_archives().incoming(0).first_layer(), second.stage().first_layer());
  EXPECT_EQ(second.kv_archives().replica().incarnation(), a->incarnation);
  // One that is drained is asked for what it has, and sent nothing, which is said.
  testing::internal::CaptureStderr();
  ASSERT_TRUE(cluster.controller().Drain("box-b", false).ok());
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("kv_no_replica plan=2 worker=\"worker 1 (box-a)\""));
  const v1::KvArchives alone = a->TakeOrders().back().load_stage().kv_archives();
  ASSERT_EQ(alone.peers_size(), 1);
  EXPECT_EQ(alone.peers(0).incarnation(), b->incarnation);
  EXPECT_FALSE(alone.has_replica());
  // Without an archive there is nothing to be told.
  FakeCluster without;
  EXPECT_FALSE(without.Join("box-c")->TakeOrders().back().load_stage().has_kv_archives());
}

/// Box-a has the whole model, and an archive; box-b and box-c are too small for any of it, and have
/// archives too, on machines of their own.
struct ReplicatingCluster {
  static v1::Registration Archive(const std::string& machine) {
    v1::Registration archive;
    archive.set_kv_archive_bytes(1 << 20);
    archive.set_kv_replicates(true);
    archive.set_machine(machine);
    return archive;
  }
  FakeWorker* JoinSpare(const std::string& name) {
    return cluster.Join(name, /*memory=*/20, false, Archive(name));
  }
  /// Box-a serves, and has taken its orders.
  void Ready() {
    v1::WorkerReport report;
    report.mutable_ready()->set_plan_version(1);
    report.mutable_ready()->set_kv_blocks(8);
    report.mutable_ready()->set_kv_block_tokens(kKvBlockTokens);
    report.mutable_ready()->mutable_kv_archive()->set_capacity(100);
    EXPECT_TRUE(cluster.Report(a, report).ok());
    EXPECT_TRUE(cluster.Status().serving());
    a->TakeOrders();
  }
  absl::Status News(uint64_t plan_version, uint64_t refused_by) {
    v1::WorkerReport report;
    v1::KvArchiveNews& news = *report.mutable_kv_archive();
    news.set_room_bytes(1 << 20);
    news.set_plan_version(plan_version);
    news.set_capacity(90);
    news.set_refused_by(refused_by);
    return cluster.Report(a, report);
  }
  /// Whom box-a is told to send to by its only order; 0: nobody.
  uint64_t Told() {
    cluster.Advance(absl::Milliseconds(1));
    const std::vector<v1::WorkerOrder> orders = a->TakeOrders();
    EXPECT_THAT(orders, SizeIs(1));
    if (orders.size() != 1 || !orders[0].has_set_kv_replica()) {
      ADD_FAILURE() << "no SetKvReplica";
      return 1;
    }
    EXPECT_EQ(orders[0].set_kv_replica().plan_version(), 1u);
    EXPECT_EQ(orders[0].set_kv_replica().kv_archives().peers_size(), 0);
    return orders[0].set_kv_replica().kv_archives().replica().incarnation();
  }

  FakeCluster cluster;
  FakeWorker* a = cluster.Join("box-a", kWhole, false, Archive("box-a"));
};

TEST(ClusterControllerTest, ALostReplicaIsReplacedWhileThePlanServes) {
  ReplicatingCluster it;
  FakeWorker* const b = it.JoinSpare("box-b");
  it.Ready();
  // There was nobody when the plan was made.
  EXPECT_EQ(it.Told(), b->incarnation);
  FakeWorker* const c = it.JoinSpare("box-c");
  it.cluster.Advance(absl::Milliseconds(1));
  EXPECT_THAT(it.a->TakeOrders(), IsEmpty()) << "the one that there is goes on";
  it.cluster.Gone(b);
  EXPECT_EQ(it.Told(), c->incarnation);
  testing::internal::CaptureStderr();
  it.cluster.Gone(c);
  EXPECT_EQ(it.Told(), 0u);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("kv_no_replica plan=1 worker=\"worker 1 (box-a)\""));
  testing::internal::CaptureStderr();
  FakeWorker* const d = it.JoinSpare("box-d");
  EXPECT_EQ(it.Told(), d->incarnation);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("kv_replica plan=1 worker=\"worker 1 (box-a)\" to=\"worker 4 (box-d)\""));
  EXPECT_EQ(it.cluster.Status().plan_version(), 1u);
  EXPECT_TRUE(it.cluster.Status().serving());
}

TEST(ClusterControllerTest, AReplicaThatIsDrainedOrRefusesIsReplaced) {
  ReplicatingCluster it;
  FakeWorker* const b = it.JoinSpare("box-b");
  FakeWorker* const c = it.JoinSpare("box-c");
  it.Ready();
  EXPECT_EQ(it.Told(), b->incarnation);
  ASSERT_TRUE(it.cluster.controller().Drain("box-b", false).ok());
  EXPECT_EQ(it.Told(), c->incarnation);
  ASSERT_TRUE(it.cluster.controller().Drain("box-b", true).ok());
  it.cluster.Advance(absl::Milliseconds(1));
  EXPECT_THAT(it.a->TakeOrders(), IsEmpty());
  ASSERT_TRUE(it.News(1, c->incarnation).ok());
  EXPECT_EQ(it.Told(), b->incarnation);
  // What it says of another plan than the present one is of no stage.
  ASSERT_TRUE(it.News(7, 0).ok());
  it.cluster.Advance(absl::Milliseconds(1));
  EXPECT_THAT(it.a->TakeOrders(), IsEmpty());
}

TEST(ClusterControllerTest, AReplicaThatRefusedLongAgoIsReplacedByOneThatJoins) {
  ReplicatingCluster it;
  FakeWorker* const b = it.JoinSpare("box-b");
  it.Ready();
  EXPECT_EQ(it.Told(), b->incarnation);
  // There is nobody else. It goes on refusing, which is said once.
  ASSERT_TRUE(it.News(1, b->incarnation).ok());
  for (int second = 0; second < 6 * 60; ++second) {
    it.cluster.Advance(absl::Seconds(1));
    it.cluster.Heartbeat(it.a);
    it.cluster.Heartbeat(b);
  }
  EXPECT_THAT(it.a->TakeOrders(), IsEmpty());
  FakeWorker* const c = it.JoinSpare("box-c");
  EXPECT_EQ(it.Told(), c->incarnation);
}

/// Box-a and box-b have half of the model each, and in their archives the first two blocks of a
/// prompt.
struct ArchivingPair {
  static v1::Registration Archive() {
    v1::Registration archive;
    archive.set_kv_archive_bytes(1 << 20);
    return archive;
  }
  void Ready(const FakeWorker* worker) {
    v1::WorkerReport report;
    v1::StageReady& ready = *report.mutable_ready();
    ready.set_plan_version(1);
    ready.set_kv_blocks(8);
    ready.set_kv_block_tokens(kKvBlockTokens);
    ready.mutable_kv_archive()->set_capacity(100);
    KvBlockName name = NameKvRoot("");
    for (size_t begin = 0; begin + 1 < job.prompt.size(); begin += kKvBlockTokens) {
      name = NameKvBlock(name, absl::MakeConstSpan(job.prompt).subspan(begin, kKvBlockTokens));
      absl::StrAppend(ready.mutable_kv_archive()->mutable_names(), name.view());
    }
    EXPECT_TRUE(cluster.Report(worker, report).ok());
  }
  void News(const FakeWorker* worker, uint64_t capacity) {
    v1::WorkerReport report;
    report.mutable_kv_archive()->set_plan_version(1);
    report.mutable_kv_archive()->set_capacity(capacity);
    EXPECT_TRUE(cluster.Report(worker, report).ok());
  }
  /// Blocks that the job's first step takes from the archives.
  int Restored() {
    const std::unique_ptr<JobHandle> handle = cluster.Submit(job);
    return cluster.WaitForStep(1).restored_blocks_size();
  }

  const JobSpec job = ToyJob(2 * kKvBlockTokens + 1, 1);
  FakeCluster cluster{2, SmallCost(), {}, /*context_tokens=*/3 * kKvBlockTokens};
  FakeWorker* a = cluster.Join("box-a", kWhole, false, Archive());
  FakeWorker* b = cluster.Join("box-b", kWhole, false, Archive());
};

TEST(ClusterControllerTest, WhatAllArchivesHaveIsTakenFromThem) {
  ArchivingPair it;
  it.Ready(it.a);
  it.Ready(it.b);
  EXPECT_EQ(it.Restored(), 2);
}

// Of a prompt the last blocks are kept longest, and nothing is found without the first.
TEST(ClusterControllerTest, AnArchiveThatHasLostBlocksIsNotAskedForThem) {
  ArchivingPair it;
  it.Ready(it.a);
  it.Ready(it.b);
  it.News(it.b, 1);
  EXPECT_EQ(it.Restored(), 0);
}

TEST(ClusterControllerTest, NorIsOneThatLostThemBeforeAllStagesWereReady) {
  ArchivingPair it;
  it.News(it.a, 1);  // of no stage yet
  it.Ready(it.b);
  it.News(it.b, 1);
  EXPECT_FALSE(it.cluster.Status().serving());
  it.Ready(it.a);
  EXPECT_TRUE(it.cluster.Status().serving());
  EXPECT_EQ(it.Restored(), 0);
}

TEST(ClusterControllerTest, ARoomThatShrinksMovesReplicasElsewhere) {
  ReplicatingCluster it;
  FakeWorker* const b = it.JoinSpare("box-b");
  FakeWorker* const c = it.JoinSpare("box-c");
  it.Ready();
  EXPECT_EQ(it.Told(), b->incarnation);
  v1::WorkerReport full;
  full.mutable_kv_archive()->set_room_bytes(1 << 16);
  ASSERT_TRUE(it.cluster.Report(b, full).ok());
  EXPECT_EQ(it.Told(), c->incarnation);
}

TEST(ClusterControllerTest, ServesOnceEveryStageIsReady) {
  FakeCluster cluster(2);
  FakeWorker* const a = cluster.Join("box-a");
  FakeWorker* const b = cluster.Join("box-b");
  const std::unique_ptr<JobHandle> job = cluster.Submit(ToyJob(5, 3));
  cluster.Ready(b, 1);
  EXPECT_EQ(cluster.Status().pipeline_state(), "loading");
  EXPECT_THAT(cluster.first_hops(), IsEmpty());
  cluster.Ready(a, 1);
  EXPECT_EQ(cluster.Status().pipeline_state(), "serving");
  EXPECT_EQ(cluster.Status().state(), v1::PIPELINE_STATE_SERVING);
  ASSERT_THAT(cluster.first_hops(), SizeIs(1));
  EXPECT_EQ(cluster.first_hops()[0].address, a->address);
  EXPECT_EQ(cluster.first_hops()[0].incarnation, a->incarnation);
  EXPECT_EQ(cluster.first_hops()[0].name, "worker 1 (box-a)");
  EXPECT_EQ(cluster.first_hops()[0].plan_version, 1u);
  cluster.RunDry(1);
  const absl::StatusOr<JobUpdate> update = job->Next();
  ASSERT_TRUE(update.ok());
  EXPECT_TRUE(update->finished);
  EXPECT_EQ(update->tokens.size(), 3u);
}

TEST(ClusterControllerTest, AReadyThatCameBeforeThePlanDoesNotCount) {
  FakeCluster cluster(2);
  cluster.Ready(cluster.Join("box-a"), 1);  // of no plan yet
  FakeWorker* const b = cluster.Join("box-b");
  cluster.Ready(b, 1);
  EXPECT_FALSE(cluster.Status().serving());
}

TEST(ClusterControllerTest, ABoxThatChangesNothingStaysSpare) {
  FakeCluster cluster(4);
  std::vector<FakeWorker*> workers;
  for (int i = 0; i < 4; ++i) workers.push_back(cluster.Join(absl::StrCat("box-", i)));
  for (FakeWorker* worker : workers) {
    cluster.Ready(worker, 1);
    worker->TakeOrders();
  }
  FakeWorker* const spare = cluster.Join("box-spare");  // a fifth, for four layers
  cluster.controller().Tick();
  for (FakeWorker* worker : workers) EXPECT_TRUE(worker->TakeOrders().empty());
  EXPECT_EQ(spare->TakeOrders().size(), 1u);  // Welcome
  EXPECT_EQ(cluster.Status().plan_version(), 1u);
  EXPECT_EQ(cluster.Status().workers(4).state(), v1::WORKER_STATE_SPARE);
  cluster.Gone(spare);
  EXPECT_TRUE(cluster.Status().serving());
  // It does take the place of one that is lost.
  FakeWorker* const another = cluster.Join("box-another");
  another->TakeOrders();
  cluster.Gone(workers[1]);
  EXPECT_EQ(OnlyLoad(another->TakeOrders()).plan_version(), 2u);
}

TEST(ClusterControllerTest, AModelThatDoesNotFitWaitsForAnotherBox) {
  FakeCluster cluster;
  FakeWorker* const a = cluster.Join("box-a", kHalf);
  EXPECT_EQ(a->TakeOrders().size(), 1u);  // Welcome
  EXPECT_THAT(cluster.Status().pipeline_state(),
              AllOf(HasSubstr("the model needs"), HasSubstr("but the worker offers 900 B")));
  FakeWorker* const b = cluster.Join("box-b", kHalf);
  EXPECT_EQ(OnlyLoad(a->TakeOrders()).plan_version(), 1u);
  EXPECT_EQ(b->TakeOrders().size(), 2u);  // Welcome, LoadStage
  EXPECT_EQ(cluster.Status().pipeline_state(), "loading");
}

TEST(ClusterControllerTest, AJobThatGivesUpWaitingHearsWhy) {
  FakeCluster cluster;
  cluster.Join("box-a", kHalf);
  const std::unique_ptr<JobHandle> job = cluster.Submit(ToyJob(5, 3));
  cluster.Advance(absl::Seconds(11));  // the worker is lost, so the reason is known in time
  cluster.Advance(absl::Seconds(52));
  cluster.driver().Tick();
  const absl::Status why = job->Next().status();
  EXPECT_EQ(why.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(why.message()), HasSubstr("waiting for 1 more worker to join"));
}

TEST(ClusterControllerTest, StatusTellsWhatEveryWorkerHolds) {
  FakeCluster cluster(2);
  FakeWorker* const a = cluster.Join("box-a");
  FakeWorker* const b = cluster.Join("box-b");
  v1::WorkerReport progress;
  progress.mutable_progress()->set_plan_version(1);
  progress.mutable_progress()->set_loaded_bytes(123);
  EXPECT_TRUE(cluster.Report(a, progress).ok());
  cluster.Ready(b, 1, 5);
  const v1::GetStatusResponse status = cluster.Status();
  EXPECT_EQ(status.model(), "/models/small");
  EXPECT_EQ(status.plan_version(), 1u);
  EXPECT_FALSE(status.serving());
  ASSERT_EQ(status.workers_size(), 2);
  EXPECT_EQ(status.workers(0).worker_id(), Number(a->id));
  EXPECT_EQ(status.workers(0).name(), "box-a");
  EXPECT_EQ(status.workers(0).address(), a->address);
  EXPECT_EQ(status.workers(0).device(), "cpu");
  EXPECT_EQ(status.workers(0).state(), v1::WORKER_STATE_LOADING);
  EXPECT_EQ(status.workers(0).memory_budget_bytes(), kWhole);
  EXPECT_EQ(status.workers(0).stage_bytes(), 300u);
  EXPECT_EQ(status.workers(0).loaded_bytes(), 123u);
  EXPECT_EQ(status.workers(1).state(), v1::WORKER_STATE_READY);
  EXPECT_EQ(*StageFromProto(status.workers(1).stage()), (StageSpec{2, 4, false, true}));
  EXPECT_EQ(status.workers(1).loaded_bytes(), 300u);
  EXPECT_EQ(status.workers(1).kv_blocks(), 5u);
  EXPECT_EQ(status.workers(1).kv_block_tokens(), kKvBlockTokens);
  EXPECT_FALSE(status.workers(0).on_card());
  EXPECT_EQ(status.workers(0).next().neighbour(), "worker 2 (box-b)");
  EXPECT_EQ(status.workers(0).next().why(), "worker 1 (box-a) has no card");
  EXPECT_FALSE(status.workers(1).has_next());
}

TEST(ClusterControllerTest, StatusTellsWhatAStageTakesOfItsCard) {
  FakeCluster cluster;
  FakeWorker* const a = cluster.Join("box-a", kWhole, false, Card("a", ""));
  EXPECT_TRUE(cluster.Status().workers(0).on_card());
  EXPECT_EQ(cluster.Status().workers(0).card_bytes(), 0u);
  v1::WorkerReport report;
  report.mutable_ready()->set_plan_version(1);
  report.mutable_ready()->set_kv_blocks(8);
  report.mutable_ready()->set_kv_block_tokens(kKvBlockTokens);
  report.mutable_ready()->set_card_bytes(12345);
  ASSERT_TRUE(cluster.Report(a, report).ok());
  EXPECT_EQ(cluster.Status().workers(0).card_bytes(), 12345u);
}

TEST(ClusterControllerTest, ExpertsThatDoNotFitStayOnTheDisk) {
  FakeCluster cluster(1, SmallPackCost());
  // Of 1500 bytes: 10 are the process's, 280 always active, 1024 are one sequence's KV cache; half
  // of what is left beside 2 slots goes to five tokens more.
  FakeWorker* const a = cluster.Join("box-a", 1500, /*offloads=*/true);
  a->orders.erase(a->orders.begin());  // Welcome
  const v1::LoadStage load = OnlyLoad(a->TakeOrders());
  EXPECT_EQ(load.kv_budget_bytes(), 1024u + 5 * 16);
  EXPECT_EQ(load.expert_budget_bytes(), 100u);
  EXPECT_EQ(load.resident_budget_bytes(), 600u + 1024);

  v1::WorkerReport progress;
  progress.mutable_progress()->set_plan_version(1);
  progress.mutable_progress()->set_loaded_bytes(140);
  progress.mutable_progress()->set_total_bytes(280);
  EXPECT_TRUE(cluster.Report(a, progress).ok());
  v1::WorkerStatus worker = cluster.Status().workers(0);
  EXPECT_EQ(worker.loaded_bytes(), 140u);
  EXPECT_EQ(worker.load_bytes(), 280u);
  cluster.Ready(a, 1, 4);
  worker = cluster.Status().workers(0);
  EXPECT_EQ(worker.stage_bytes(), 600u);
  EXPECT_EQ(worker.loaded_bytes(), 280u + 100);
  EXPECT_EQ(worker.expert_bytes(), 100u);
  EXPECT_EQ(worker.expert_slots(), 10u);
  EXPECT_EQ(worker.experts(), 32u);
}

TEST(ClusterControllerTest, DismissTellsEveryWorker) {
  ServingPair pair;
  pair.cluster.controller().Dismiss("leaving");
  for (FakeWorker* worker : {pair.a, pair.b}) {
    const std::vector<v1::WorkerOrder> orders = worker->TakeOrders();
    ASSERT_EQ(orders.size(), 1u);
    EXPECT_EQ(orders[0].dismissal().reason(), "leaving");
  }
}

}  // namespace
}  // namespace caravan
