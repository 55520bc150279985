#include "coordinator/cluster_controller.h"
#include "cluster/protocol_version.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_pipeline.h"
#include "tests/coordinator/toy_model.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr uint64_t kCoordinator = 4711;
constexpr uint64_t kWhole = 10000;  // memory that holds the whole model
constexpr uint64_t kHalf = 900;     // memory that holds half of it

/// 4 layers of 100 bytes and a KV cache of one value a token, beside an embedding and a head of 100
/// bytes: with a context of 64 tokens in f32 1624 bytes.
ModelCost SmallCost() {
  ModelCost cost;
  cost.embedding.weight_bytes = 100;
  cost.head.weight_bytes = 100;
  LayerCost layer;
  layer.weight_bytes = 100;
  layer.kv_values_per_token = 1;
  cost.layers.assign(4, layer);
  return cost;
}

/// The same of a pack, its layers of 20 bytes and 8 experts of 10, of which a row chooses 2.
ModelCost SmallPackCost() {
  ModelCost cost = SmallCost();
  for (LayerCost& layer : cost.layers) {
    layer.expert_bytes = 80;
    layer.num_experts = 8;
    layer.expert_slot_bytes = 10;
    layer.experts_per_token = 2;
  }
  return cost;
}

/// A worker as the controller sees it.
struct FakeWorker {
  WorkerId id{};
  uint64_t incarnation = 0;
  std::string address;
  std::vector<v1::WorkerOrder> orders;
  bool hung_up = false;

  /// The orders since the last call.
  std::vector<v1::WorkerOrder> TakeOrders() { return std::exchange(orders, {}); }
};

/// A controller, a driver, and every worker that joined.
class FakeCluster {
 public:
  explicit FakeCluster(int min_workers = 1, const ModelCost& cost = SmallCost())
      : driver_(DriverOptions()),
        controller_(
            ControllerOptions(min_workers, cost), &driver_,
            [this](const ClusterController::PipelineEnds& ends) { return OpenFirstHop(ends); }) {}

  /// `more`: what else it says of itself.
  FakeWorker* Join(const std::string& name, uint64_t memory = kWhole, bool offloads = false,
                   const v1::Registration& more = {}, const std::string& identity = "") {
    auto worker = std::make_unique<FakeWorker>();
    worker->incarnation = 1000 + workers_.size();
    worker->address = absl::StrCat("10.0.0.", workers_.size() + 1, ":7000");
    v1::Registration registration;
    registration.set_name(name);
    registration.set_address(worker->address);
    registration.set_device("cpu");
    registration.set_memory_budget_bytes(memory);
    registration.set_num_threads(2);
    registration.set_offloads(offloads);
    registration.set_process_bytes(10);
    registration.set_protocol_version(kProtocolVersion);
    registration.MergeFrom(more);
    ClusterController::WorkerLink link;
    link.order = [w = worker.get()](v1::WorkerOrder order) { w->orders.push_back(order); };
    link.hang_up = [w = worker.get()] { w->hung_up = true; };
    const absl::StatusOr<WorkerId> id =
        controller_.Join(worker->incarnation, registration, std::move(link), identity);
    EXPECT_TRUE(id.ok()) << id.status().ToString();
    if (id.ok()) worker->id = *id;
    workers_.push_back(std::move(worker));
    return workers_.back().get();
  }

  /// As whoever's registration that is.
  absl::Status TryJoin(const v1::Registration& registration) {
    return controller_.Join(1, registration, {}).status();
  }

  absl::Status Report(const FakeWorker* worker, v1::WorkerReport report) {
    report.set_incarnation(worker->incarnation);
    return controller_.Report(worker->id, report);
  }
  void Heartbeat(const FakeWorker* worker) {
    v1::WorkerReport report;
    report.mutable_heartbeat();
    EXPECT_TRUE(Report(worker, report).ok());
  }
  void Ready(const FakeWorker* worker, uint64_t plan_version, uint32_t kv_blocks = 8,
             uint32_t kv_block_tokens = kKvBlockTokens) {
    v1::WorkerReport report;
    report.mutable_ready()->set_plan_version(plan_version);
    report.mutable_ready()->set_kv_blocks(kv_blocks);
    report.mutable_ready()->set_kv_block_tokens(kv_block_tokens);
    EXPECT_TRUE(Report(worker, report).ok());
  }
  void Fail(const FakeWorker* worker, uint64_t plan_version, const std::string& message,
            absl::StatusCode code = absl::StatusCode::kUnavailable) {
    v1::WorkerReport report;
    report.mutable_failure()->set_plan_version(plan_version);
    report.mutable_failure()->set_code(static_cast<int>(code));
    report.mutable_failure()->set_message(message);
    EXPECT_TRUE(Report(worker, report).ok());
  }
  void Gone(const FakeWorker* worker) { controller_.Gone(worker->id, worker->incarnation); }

  void Advance(absl::Duration by) {
    clock_.Advance(by);
    controller_.Tick();
  }

  std::unique_ptr<JobHandle> Submit(const JobSpec& spec) {
    absl::StatusOr<std::unique_ptr<JobHandle>> job = driver_.Submit(spec);
    EXPECT_TRUE(job.ok()) << job.status().ToString();
    return *std::move(job);
  }

  /// Lets steps come home until no more than `jobs_left` jobs are there, and none runs.
  void RunDry(uint64_t plan_version, size_t jobs_left = 0) {
    while (driver_.List().size() > jobs_left || !driver_.Idle()) {
      Deliver(plan_version, WaitForStep(plan_version));
    }
  }

  /// Waits until a step of the plan is on its way, and keeps it there.
  v1::Step WaitForStep(uint64_t plan_version) { return pipelines_.at(plan_version)->Take(); }
  void Deliver(uint64_t plan_version, v1::Step step) {
    EXPECT_TRUE(pipelines_.at(plan_version)->Deliver(&driver_, std::move(step)).ok());
  }

  ClusterController& controller() { return controller_; }
  PipelineDriver& driver() { return driver_; }
  v1::GetStatusResponse Status() const { return controller_.Status(); }

  struct FirstHop {
    std::string address;
    uint64_t incarnation = 0;
    std::string name;
    uint64_t plan_version = 0;
  };
  const std::vector<FirstHop>& first_hops() const { return first_hops_; }
  void RefuseFirstHops(absl::Status why) { refusal_ = std::move(why); }

 private:
  PipelineDriver::Options DriverOptions() {
    PipelineDriver::Options options;
    options.vocab_size = ToyModel().vocab_size;
    options.context_tokens = 64;
    options.prefill_chunk = 32;
    options.clock = &clock_;
    return options;
  }

  ClusterController::Options ControllerOptions(int min_workers, const ModelCost& cost) {
    ClusterController::Options options;
    options.model.set_directory("/models/small");
    options.model.set_fingerprint(99);
    options.cost = cost;
    options.min_workers = min_workers;
    options.context_tokens = 64;
    options.kv_tokens = 512;
    options.max_step_tokens = 32;
    options.incarnation = kCoordinator;
    options.identity = "coordinator/c";
    options.clock = &clock_;
    return options;
  }

  absl::StatusOr<std::unique_ptr<ActivationChannel>> OpenFirstHop(
      const ClusterController::PipelineEnds& ends) {
    const uint64_t version = ends.plan_version;
    first_hops_.push_back(
        {ends.first.registration.address(), ends.first.incarnation, ends.name, version});
    if (!refusal_.ok()) return refusal_;
    FakePipeline::Options options;
    options.plan_version = version;
    options.num_stages = 4;
    options.kv_block_tokens = kKvBlockTokens;
    auto& pipeline = pipelines_[version];
    pipeline = std::make_unique<FakePipeline>(options);
    return std::move(pipeline->Connect().first_hop);
  }

  SimulatedClock clock_;
  std::map<uint64_t, std::unique_ptr<FakePipeline>> pipelines_;  // by plan
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::vector<FirstHop> first_hops_;
  absl::Status refusal_;
  PipelineDriver driver_;
  ClusterController controller_;
};

/// The LoadStage that is the only order in `orders`.
v1::LoadStage OnlyLoad(const std::vector<v1::WorkerOrder>& orders) {
  EXPECT_EQ(orders.size(), 1u);
  if (orders.size() != 1 || !orders[0].has_load_stage()) {
    ADD_FAILURE() << "no LoadStage";
    return {};
  }
  return orders[0].load_stage();
}

/// The plan whose end is the only order in `orders`; 0: something else.
uint64_t OnlyDrop(const std::vector<v1::WorkerOrder>& orders) {
  return orders.size() == 1 ? orders[0].drop_stage().plan_version() : 0;
}

/// A cluster of two workers that serves plan 1.
struct ServingPair {
  FakeCluster cluster{2};
  FakeWorker* a = cluster.Join("box-a");
  FakeWorker* b = cluster.Join("box-b");
  ServingPair() {
    cluster.Ready(a, 1);
    cluster.Ready(b, 1);
    EXPECT_TRUE(cluster.Status().serving());
    a->TakeOrders();
    b->TakeOrders();
  }
};

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
  EXPECT_EQ(cluster.Status().plan_version(), 0u);
  cluster.Join("box-c");
  EXPECT_EQ(cluster.Status().pipeline_state(), "loading");
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

/// Registers with a card, and that NCCL; empty: with none.
v1::Registration Card(const std::string& card, const std::string& nccl_version) {
  v1::Registration registration;
  registration.set_on_card(true);
  registration.set_memory_budget_bytes(uint64_t{1} << 30);
  registration.set_nccl_version(nccl_version);
  registration.set_nccl_card(card);
  registration.set_machine("one");
  return registration;
}

TEST(ClusterControllerTest, ActivationsGoByNcclBetweenCardsThatBothHaveIt) {
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

TEST(ClusterControllerTest, AHopThatCannotBeJoinedGoesOverTcpUntilAnEndJoinsAnew) {
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

TEST(ClusterControllerTest, AnUnjoinedHopThatIsNoneIsAFailureLikeOthers) {
  FakeCluster cluster(2);
  FakeWorker* const a = cluster.Join("box-a", kWhole, false, Card("a", "2.28.9"));
  cluster.Join("box-b", kWhole, false, Card("b", "2.28.9"));
  ASSERT_TRUE(cluster.Report(a, Unjoined(1, v1::HOP_END_PREVIOUS, "there is none")).ok());
  EXPECT_EQ(cluster.Status().pipeline_state(), "there is none");
  cluster.Advance(absl::Seconds(5));
  EXPECT_EQ(cluster.Status().plan_version(), 2u);
  EXPECT_TRUE(cluster.Status().workers(0).next().by_nccl());
}

TEST(ClusterControllerTest, OtherHopsGoOverTcpAndSayWhy) {
  const auto hop = [](const v1::Registration& a, const v1::Registration& b) {
    FakeCluster cluster(2);
    FakeWorker* const first = cluster.Join("box-a", kWhole, false, a);
    cluster.Join("box-b", kWhole, false, b);
    const v1::Hop next = first->TakeOrders().back().load_stage().next();
    EXPECT_EQ(next.neighbour(), "worker 2 (box-b)");
    EXPECT_FALSE(next.by_nccl());
    return next.why();
  };
  EXPECT_EQ(hop({}, {}), "worker 1 (box-a) has no card");
  EXPECT_EQ(hop(Card("a", "2.28.9"), {}), "worker 2 (box-b) has no card");
  EXPECT_EQ(hop(Card("a", ""), Card("b", "2.28.9")), "worker 1 (box-a) offers no NCCL");
  EXPECT_EQ(hop(Card("a", "2.28.9"), Card("b", "2.27.3")),
            "worker 1 (box-a) has NCCL 2.28.9, worker 2 (box-b) has 2.27.3");
  EXPECT_EQ(hop(Card("a", "2.28.9"), Card("a", "2.28.9")), "they share a card");
}

TEST(ClusterControllerTest, NcclGoesOnlyWhereNobodyElseReads) {
  const auto hop = [](std::vector<std::string> a, std::vector<std::string> b, bool insists,
                      bool other_insists = false) {
    FakeCluster cluster(2);
    v1::Registration first = Card("a", "2.28.9");
    v1::Registration second = Card("b", "2.28.9");
    first.set_machine("one");
    second.set_machine("another");
    for (const std::string& network : a) first.add_trusted_networks(network);
    for (const std::string& network : b) second.add_trusted_networks(network);
    first.set_requires_nccl(other_insists);
    second.set_requires_nccl(insists);
    FakeWorker* const worker = cluster.Join("box-a", kWhole, false, first);
    cluster.Join("box-b", kWhole, false, second);
    return worker->TakeOrders().back().load_stage().next();
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

TEST(ClusterControllerTest, WorkersOfUnknownMachinesAreNotOnOne) {
  FakeCluster cluster(2);
  v1::Registration card = Card("a", "2.28.9");
  card.clear_machine();
  FakeWorker* const worker = cluster.Join("box-a", kWhole, false, card);
  card.set_nccl_card("b");
  cluster.Join("box-b", kWhole, false, card);
  EXPECT_FALSE(worker->TakeOrders().back().load_stage().next().by_nccl());
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

TEST(ClusterControllerTest, AWorkerLostWhileServingIsReplacedAndItsJobsGoOn) {
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

TEST(ClusterControllerTest, AWorkerLostWhileLoadingIsReplacedAtOnce) {
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

TEST(ClusterControllerTest, AllWorkersLostWaitsForOne) {
  ServingPair pair;
  pair.cluster.Gone(pair.a);
  pair.cluster.Gone(pair.b);
  EXPECT_EQ(pair.cluster.Status().pipeline_state(), "waiting for 1 more worker to join");
  EXPECT_EQ(pair.cluster.Status().plan_version(), 0u);
  pair.cluster.Join("box-c");
  EXPECT_EQ(pair.cluster.Status().pipeline_state(), "loading");
}

TEST(ClusterControllerTest, AFailedStageIsTriedAgainAfterADelay) {
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

TEST(ClusterControllerTest, AWorkerThatCannotLoadIsLeftOutUntilItJoinsAnew) {
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

TEST(ClusterControllerTest, WithEveryWorkerLeftOutAnotherOneIsWaitedFor) {
  FakeCluster cluster;
  FakeWorker* const a = cluster.Join("box-a");
  cluster.Fail(a, 1, "worker box-a: not the model", absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cluster.Status().pipeline_state(),
            "waiting for 1 more worker to join; left out: worker box-a: not the model");
  FakeWorker* const b = cluster.Join("box-b");
  b->orders.erase(b->orders.begin());  // Welcome
  EXPECT_EQ(OnlyLoad(b->TakeOrders()).plan_version(), 2u);
}

TEST(ClusterControllerTest, AWorkerThatMayLoadTheNextTimeIsTriedAgain) {
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

TEST(ClusterControllerTest, KvBlocksOfAnotherSizeAreRefused) {
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

TEST(ClusterControllerTest, ALostWorkerEndsTheDelayThatItsNeighbourBegan) {
  ServingPair pair;
  pair.cluster.Fail(pair.a, 1, "worker box-a: the next hop is lost");
  pair.a->TakeOrders();
  pair.cluster.Gone(pair.b);
  EXPECT_EQ(OnlyLoad(pair.a->TakeOrders()).plan_version(), 2u);
}

TEST(ClusterControllerTest, AFirstHopThatCannotBeOpenedIsTriedAgain) {
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

TEST(ClusterControllerTest, AWorkerThatCannotReadItsDiskIsLeftOutWhereTheOthersCanDoWithoutIt) {
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

TEST(ClusterControllerTest, ADrainedWorkerGetsNoStageUntilItJoinsAnewOrMayAgain) {
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
  EXPECT_EQ(a->TakeOrders().size(), 2u);  // DropStage, LoadStage
  EXPECT_EQ(OnlyDrop(b->TakeOrders()), 1u);
  cluster.Ready(a, 2);
  EXPECT_EQ(cluster.Status().pipeline_state(), "serving; drained: worker 2 (box-b)");
  EXPECT_TRUE(cluster.Status().workers(1).drained());
  EXPECT_EQ(*cluster.controller().Drain("box-b", false), b->id) << "once more";
  EXPECT_EQ(cluster.Status().plan_version(), 2u);

  EXPECT_EQ(*cluster.controller().Drain("box-b", true), b->id);
  EXPECT_EQ(cluster.Status().plan_version(), 3u);
  EXPECT_EQ(*cluster.controller().Drain("box-b", false), b->id);
  cluster.Gone(b);
  cluster.Join("box-b", kHalf);
  EXPECT_FALSE(cluster.Status().workers(1).drained());
  EXPECT_EQ(cluster.Status().workers(1).state(), v1::WORKER_STATE_LOADING);
  cluster.Join("box-b");
  EXPECT_EQ(cluster.controller().Drain("box-b", false).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ClusterControllerTest, RunningJobsGoOnOverABetterPlan) {
  FakeCluster cluster;
  FakeWorker* const a = cluster.Join("box-a");
  cluster.Ready(a, 1);
  const std::unique_ptr<JobHandle> running = cluster.Submit(ToyJob(5, 3));
  a->TakeOrders();
  cluster.Deliver(1, cluster.WaitForStep(1));
  cluster.WaitForStep(1);
  FakeWorker* const b = cluster.Join("box-b");
  const std::vector<v1::WorkerOrder> orders = a->TakeOrders();
  ASSERT_EQ(orders.size(), 2u);
  EXPECT_EQ(orders[0].drop_stage().plan_version(), 1u);
  EXPECT_EQ(orders[1].load_stage().plan_version(), 2u);
  EXPECT_EQ(b->TakeOrders().size(), 2u);  // Welcome, LoadStage
  const std::unique_ptr<JobHandle> queued = cluster.Submit(ToyJob(4, 2));
  cluster.Ready(a, 2);
  cluster.Ready(b, 2);
  cluster.RunDry(2);
  for (const auto& job : {running.get(), queued.get()}) {
    const absl::StatusOr<JobUpdate> update = job->Next();
    ASSERT_TRUE(update.ok()) << update.status();
    EXPECT_TRUE(update->finished);
  }
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

TEST(ClusterControllerTest, ADepartedWorkerIsLostAtOnce) {
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

TEST(ClusterControllerTest, SilenceIsALoss) {
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

TEST(ClusterControllerTest, AStaleIncarnationIsAborted) {
  ServingPair pair;
  FakeWorker stale = *pair.a;
  stale.incarnation += 500;
  v1::WorkerReport failure;
  failure.mutable_failure()->set_plan_version(1);
  EXPECT_EQ(pair.cluster.Report(&stale, failure).code(), absl::StatusCode::kAborted);
  pair.cluster.Gone(&stale);
  EXPECT_TRUE(pair.cluster.Status().serving());
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

TEST(ClusterControllerTest, ReportsOfAnOldPlanAreIgnored) {
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

TEST(ClusterControllerTest, AWorkerThatFindsNoPackGetsNoStageThatNeedsOne) {
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

TEST(ClusterControllerTest, AnOffloadingStageWithWrongBytesIsLeftOutForGood) {
  FakeCluster cluster(1, SmallPackCost());
  FakeWorker* const a = cluster.Join("box-a", 1500, /*offloads=*/true);
  a->TakeOrders();
  cluster.Fail(a, 1, "worker box-a: wrong hash", absl::StatusCode::kDataLoss);
  EXPECT_EQ(cluster.Status().pipeline_state(),
            "waiting for 1 more worker to join; left out: worker box-a: wrong hash");
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
