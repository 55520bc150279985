// A worker whose stages leave experts on its disk: what its options and counters come to.

#include <deque>
#include <memory>
#include <string>

#include "base/bounded_queue.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/fake_card.h"
#include "tests/worker/borrowed_source.h"
#include "tests/worker/experts/expert_testing.h"
#include "tests/worker/fake_hop.h"
#include "worker/experts/routing_trace.h"
#include "worker/worker.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kSlots = 24;

class OffloadingWorkerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { toy_ = new PackedToy; }
  static void TearDownTestSuite() { delete toy_; }

  OffloadingWorkerTest() {
    environment_.name = "worker box-a";
    environment_.make_backend = [](const ModelConfig&, int64_t) { return MakeCpuBackend({}); };
    environment_.open_model = [](const v1::LoadStage&, const LoadProgress&, std::stop_token) {
      return std::make_unique<BorrowedSource>(toy_->model());
    };
    environment_.open_next_hop = [this](const v1::LoadStage&, std::function<void(absl::Status)>,
                                        std::stop_token) { return hops_.emplace_back().Connect(); };
    environment_.show_progress = [](int64_t, int64_t) {};
    environment_.report = [this](v1::WorkerReport report) {
      EXPECT_TRUE(reports_.TryPush(std::move(report)));
    };
  }

  Worker& worker() {
    if (worker_ == nullptr) worker_ = std::make_unique<Worker>(environment_);
    return *worker_;
  }

  /// Loads layers [0, end_layer), and waits for the end of it.
  v1::WorkerReport Load(uint64_t plan, int end_layer) {
    v1::WorkerOrder order;
    v1::LoadStage& load = *order.mutable_load_stage();
    load.set_plan_version(plan);
    load.mutable_stage()->set_end_layer(static_cast<uint32_t>(end_layer));
    load.mutable_stage()->set_embeds(true);
    load.mutable_model()->set_config_json(toy_->model().config_json());
    load.mutable_model()->set_fingerprint(toy_->model().fingerprint());
    load.set_kv_budget_bytes(1 << 20);
    load.set_expert_budget_bytes(static_cast<uint64_t>(kSlots * toy_->run_bytes()));
    load.set_max_step_tokens(8);
    worker().Handle(order);
    while (true) {
      v1::WorkerReport report = *reports_.Pop();
      if (!report.has_progress()) return report;
    }
  }

  /// A step of one row.
  void RunStep(uint64_t plan, uint64_t id) {
    v1::Step step;
    step.set_plan_version(plan);
    step.set_step_id(id);
    v1::SequenceSlice& slice = *step.add_slices();
    slice.add_token_ids(5);
    slice.add_kv_blocks(0);
    slice.set_output(v1::SLICE_OUTPUT_NONE);
    ASSERT_TRUE(worker().Receive(std::move(step)).ok());
    const v1::Step done = hops_.back().Take();
    EXPECT_FALSE(done.has_error()) << done.error().message();
  }

  static PackedToy* toy_;
  const TempDir dir_;
  std::deque<FakeHop> hops_;  // one a stage
  BoundedQueue<v1::WorkerReport> reports_{1000};
  Worker::Environment environment_;
  std::unique_ptr<Worker> worker_;  // last: its threads use all of the above
};

PackedToy* OffloadingWorkerTest::toy_ = nullptr;

TEST_F(OffloadingWorkerTest, CountsExpertsOverAllOfItsStages) {
  environment_.experts.guesses = ExpertStore::Guesses::kNever;
  EXPECT_FALSE(worker().load().has_experts());
  ASSERT_TRUE(Load(7, 3).has_ready());
  RunStep(7, 1);
  RunStep(7, 2);
  const v1::ExpertLoad load = worker().load().experts();
  // Two layers, the second time with the same choice.
  EXPECT_EQ(load.misses(), 2u * PackedToy::kChosen);
  EXPECT_EQ(load.hits(), 2u * PackedToy::kChosen);
  EXPECT_EQ(load.reads(), 2u * PackedToy::kChosen);
  EXPECT_EQ(load.read_bytes(), load.reads() * static_cast<uint64_t>(toy_->run_bytes()));
  EXPECT_EQ(load.evictions(), 0u);
  ASSERT_TRUE(Load(8, 2).has_ready());
  EXPECT_EQ(worker().load().experts().misses(), load.misses());
  RunStep(8, 1);
  EXPECT_GE(worker().load().experts().misses(), load.misses());
  EXPECT_GT(worker().load().experts().reads(), load.reads());
  EXPECT_GE(worker().load().experts().hits(), load.hits());
}

TEST_F(OffloadingWorkerTest, CountsWhereTheExpertsOfACardAreComputed) {
  FakeCardMemory* memory = nullptr;
  environment_.make_backend = [&](const ModelConfig&,
                                  int64_t) -> absl::StatusOr<std::unique_ptr<Backend>> {
    auto card = std::make_unique<FakeCard>(*MakeCpuBackend({}));
    memory = &card->memory();
    return card;
  };
  environment_.make_cpu = [] { return MakeCpuBackend({}); };
  environment_.card_ram_bytes = int64_t{1} << 30;
  const v1::WorkerReport report = Load(7, 3);
  ASSERT_TRUE(report.has_ready()) << report.failure().message();
  EXPECT_EQ(report.ready().card_bytes(), static_cast<uint64_t>(memory->taken_bytes()));
  for (uint64_t id = 1; id <= 3; ++id) RunStep(7, id);
  const v1::CardExpertLoad load = worker().load().card_experts();
  // Two layers have routed experts, of which a row chooses so many.
  const uint64_t chosen = 3u * 2u * PackedToy::kChosen;
  EXPECT_EQ(load.hits() + load.copies() + load.on_cpu(), chosen);
  EXPECT_GT(load.hits(), 0u);
  worker().Drop();
  EXPECT_EQ(worker().load().card_experts().hits(), load.hits());
}

TEST_F(OffloadingWorkerTest, AnotherStageHasOtherFiles) {
  environment_.expert_heat = dir_.path();
  environment_.record_routing = dir_.File("trace");
  ASSERT_TRUE(Load(7, 3).has_ready());
  RunStep(7, 1);
  ASSERT_TRUE(Load(8, 2).has_ready());
  RunStep(8, 1);
  // The first one's again: it goes on with its files.
  ASSERT_TRUE(Load(9, 3).has_ready());
  const uint64_t hits = worker().load().experts().hits();
  RunStep(9, 1);
  EXPECT_EQ(worker().load().experts().hits() - hits, 2u * PackedToy::kChosen);
  worker().Drop();
  for (const char* name : {"expert-heat-1-3.json", "expert-heat-1-2.json"}) {
    EXPECT_TRUE(FileExists(dir_.File(name))) << name;
  }
  for (const auto& [name, num_visits] : {std::pair{"trace-1-3", 4}, std::pair{"trace-1-2", 1}}) {
    class Count : public RoutingObserver {
     public:
      void OnRouting(int, int64_t, absl::Span<const int32_t>, absl::Span<const float>) override {
        ++visits;
      }
      int visits = 0;
    } count;
    const auto reader = RoutingTraceReader::Open(dir_.File(name));
    ASSERT_TRUE(reader.ok()) << reader.status();
    ASSERT_TRUE((*reader)->Read(count).ok());
    EXPECT_EQ(count.visits, num_visits) << name;
  }
}

TEST_F(OffloadingWorkerTest, ServesWhereItCanNotRecord) {
  environment_.record_routing = dir_.File("none/trace");
  testing::internal::CaptureStderr();
  const v1::WorkerReport report = Load(7, 3);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("routing_not_recorded"), HasSubstr(dir_.File("none/trace-1-3"))));
  ASSERT_TRUE(report.has_ready()) << report.failure().message();
  RunStep(7, 1);
}

TEST_F(OffloadingWorkerTest, ItsOptionsOfExpertsReachTheStage) {
  environment_.experts.policy = "fifo";
  EXPECT_THAT(Load(7, 3).failure().message(),
              HasSubstr("there is no cache policy \"fifo\" among lru, lfu, router"));
}

}  // namespace
}  // namespace caravan
