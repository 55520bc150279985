#ifndef CARAVAN_TESTS_COORDINATOR_FAKE_CLUSTER_H_
#define CARAVAN_TESTS_COORDINATOR_FAKE_CLUSTER_H_

// A ClusterController with a small model, a driver of toy jobs and workers that say what a test has
// them say.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bounded_queue.h"
#include "cluster/protocol_version.h"
#include "coordinator/cluster_controller.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_pipeline.h"
#include "tests/coordinator/toy_model.h"

namespace caravan {

inline constexpr uint64_t kCoordinator = 4711;
inline constexpr uint64_t kWhole = 10000;  // memory that holds the whole model
inline constexpr uint64_t kHalf = 900;     // memory that holds half of it

/// 4 layers of 100 bytes and a KV cache of one value a token, beside an embedding and a head of 100
/// bytes: with a context of 64 tokens in f32 1624 bytes.
inline ModelCost SmallCost() {
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
inline ModelCost SmallPackCost() {
  ModelCost cost = SmallCost();
  for (LayerCost& layer : cost.layers) {
    layer.expert_bytes = 80;
    layer.num_experts = 8;
    layer.expert_slot_bytes = 10;
    layer.experts_per_token = 2;
  }
  return cost;
}

/// Registers with a card, and that NCCL; empty: with none.
inline v1::Registration Card(const std::string& card, const std::string& nccl_version) {
  v1::Registration registration;
  registration.set_on_card(true);
  registration.set_memory_budget_bytes(uint64_t{1} << 30);
  registration.set_nccl_version(nccl_version);
  registration.set_nccl_card(card);
  registration.set_machine("one");
  return registration;
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
  explicit FakeCluster(int min_workers = 1, const ModelCost& cost = SmallCost(),
                       const ModelConfig& config = {}, int64_t context_tokens = 64)
      : driver_(DriverOptions(context_tokens)),
        controller_(
            ControllerOptions(min_workers, cost, config, context_tokens), &driver_,
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
  void Progress(const FakeWorker* worker, uint64_t plan_version, uint64_t loaded, uint64_t total) {
    v1::WorkerReport report;
    report.mutable_progress()->set_plan_version(plan_version);
    report.mutable_progress()->set_loaded_bytes(loaded);
    report.mutable_progress()->set_total_bytes(total);
    EXPECT_TRUE(Report(worker, report).ok());
  }
  void Prepared(const FakeWorker* worker, uint64_t plan_version) {
    v1::WorkerReport report;
    report.mutable_prepared()->set_plan_version(plan_version);
    EXPECT_TRUE(Report(worker, report).ok());
  }
  /// Waits until a pipeline that was to run dry has, and tells the controller.
  void WaitUntilQuiet() {
    const auto [plan_version, next_version] = TakeQuiet();
    controller_.PipelineQuiet(plan_version, next_version);
  }
  /// The same, and the controller does not hear of it: the plan, and what it ran dry for.
  std::pair<uint64_t, uint64_t> TakeQuiet() { return *quiet_.Pop(); }
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
  PipelineDriver::Options DriverOptions(int64_t context_tokens) {
    PipelineDriver::Options options;
    options.vocab_size = ToyModel().vocab_size;
    options.context_tokens = context_tokens;
    options.prefill_chunk = 32;
    options.clock = &clock_;
    options.on_quiet = [this](uint64_t plan_version, uint64_t next_version) {
      quiet_.Push({plan_version, next_version});
    };
    return options;
  }

  ClusterController::Options ControllerOptions(int min_workers, const ModelCost& cost,
                                               const ModelConfig& config, int64_t context_tokens) {
    ClusterController::Options options;
    options.model.set_directory("/models/small");
    options.model.set_fingerprint(99);
    options.cost = cost;
    options.config = config;
    options.min_workers = min_workers;
    options.context_tokens = context_tokens;
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
    options.archive = &archive_;
    auto& pipeline = pipelines_[version];
    pipeline = std::make_unique<FakePipeline>(options);
    return std::move(pipeline->Connect().first_hop);
  }

  SimulatedClock clock_;
  FakeArchive archive_;  // of all stages; empty at first, whatever workers say
  std::map<uint64_t, std::unique_ptr<FakePipeline>> pipelines_;  // by plan
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::vector<FirstHop> first_hops_;
  absl::Status refusal_;
  BoundedQueue<std::pair<uint64_t, uint64_t>> quiet_{16};  // plans that have run dry, and for which
  PipelineDriver driver_;
  ClusterController controller_;
};

/// The LoadStage that is the only order in `orders`.
inline v1::LoadStage OnlyLoad(const std::vector<v1::WorkerOrder>& orders) {
  EXPECT_EQ(orders.size(), 1u);
  if (orders.size() != 1 || !orders[0].has_load_stage()) {
    ADD_FAILURE() << "no LoadStage";
    return {};
  }
  return orders[0].load_stage();
}

/// The PrepareStage that is the only order in `orders`.
inline v1::PrepareStage OnlyPrepare(const std::vector<v1::WorkerOrder>& orders) {
  EXPECT_EQ(orders.size(), 1u);
  if (orders.size() != 1 || !orders[0].has_prepare_stage()) {
    ADD_FAILURE() << "no PrepareStage";
    return {};
  }
  return orders[0].prepare_stage();
}

/// The plan whose end is the only order in `orders`; 0: something else.
inline uint64_t OnlyDrop(const std::vector<v1::WorkerOrder>& orders) {
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

}  // namespace caravan

#endif  // CARAVAN_TESTS_COORDINATOR_FAKE_CLUSTER_H_
