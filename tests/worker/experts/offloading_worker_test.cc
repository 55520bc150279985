// A worker whose stages leave experts on its disk: what its options and counters come to.

#include <atomic>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "base/bounded_queue.h"
#include "base/check.h"
#include "base/file.h"
#include "base/mutex.h"
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
// Of which the cache has 24: as many as kFewTokens can choose in two layers.
constexpr int kManySlots = 31;
constexpr int kFewTokens = 3;

/// Bytes that were read of each layer's tensors, but for those that the expert store reads.
struct ReadBytes {
  Mutex mu;
  std::map<int, int64_t> of_layer ABSL_GUARDED_BY(mu);  // -1: of none
};

class CountedSource : public BorrowedSource {
 public:
  CountedSource(const TensorSource& source, ReadBytes* read)
      : BorrowedSource(source), read_(read) {}
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override {
    constexpr absl::string_view kPrefix = "model.layers.";
    const int layer =
        absl::StartsWith(name, kPrefix) ? std::stoi(std::string(name.substr(kPrefix.size()))) : -1;
    {
      MutexLock lock(&read_->mu);
      read_->of_layer[layer] += std::ssize(out);
    }
    return BorrowedSource::ReadPart(name, offset, out);
  }

 private:
  ReadBytes* const read_;
};

class OffloadingWorkerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { toy_ = new PackedToy; }
  static void TearDownTestSuite() { delete toy_; }

  OffloadingWorkerTest() {
    environment_.name = "worker box-a";
    environment_.make_backend = [](const ModelConfig&, int64_t) { return MakeCpuBackend({}); };
    environment_.open_model = [this](const v1::LoadStage&, const LoadProgress&, std::stop_token) {
      return std::make_unique<CountedSource>(toy_->model(), &read_);
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

  /// Of layers [0, end_layer); the last one's stage has the head.
  static v1::LoadStage Stage(uint64_t plan, int end_layer, int slots = kSlots) {
    v1::LoadStage load;
    load.set_plan_version(plan);
    load.mutable_stage()->set_end_layer(static_cast<uint32_t>(end_layer));
    load.mutable_stage()->set_embeds(true);
    load.mutable_stage()->set_has_head(end_layer == PackedToy::kLayers);
    load.mutable_model()->set_config_json(toy_->model().config_json());
    load.mutable_model()->set_fingerprint(toy_->model().fingerprint());
    load.set_kv_budget_bytes(1 << 20);
    load.set_expert_budget_bytes(static_cast<uint64_t>(slots * toy_->run_bytes()));
    load.set_max_step_tokens(8);
    return load;
  }

  /// The next report that is no progress.
  v1::WorkerReport NextReport() {
    while (true) {
      v1::WorkerReport report = *reports_.Pop();
      if (!report.has_progress()) return report;
    }
  }

  /// Loads it, and waits for the end of that.
  v1::WorkerReport Load(const v1::LoadStage& stage) {
    v1::WorkerOrder order;
    *order.mutable_load_stage() = stage;
    worker().Handle(order);
    return NextReport();
  }
  v1::WorkerReport Load(uint64_t plan, int end_layer) { return Load(Stage(plan, end_layer)); }

  void DropStage(uint64_t plan) {
    v1::WorkerOrder order;
    order.mutable_drop_stage()->set_plan_version(plan);
    worker().Handle(order);
  }

  /// Since the last call.
  std::map<int, int64_t> TakeReadBytes() {
    MutexLock lock(&read_.mu);
    return std::exchange(read_.of_layer, {});
  }
  /// Of experts, by all stages together.
  int64_t ExpertBytes() const {
    return static_cast<int64_t>(worker_->load().experts().read_bytes());
  }

  /// Greedily continues a sequence, from its first position on: its tokens. `plan` has the head.
  std::vector<uint32_t> Tokens(uint64_t plan, int count) {
    std::vector<uint32_t> tokens = {5};
    for (int i = 0; i < count; ++i) {
      v1::Step step;
      step.set_plan_version(plan);
      step.set_step_id(++step_id_);
      v1::SequenceSlice& slice = *step.add_slices();
      slice.set_sequence_id(1);
      slice.set_first_position(static_cast<uint32_t>(i));
      slice.add_token_ids(tokens.back());
      slice.add_kv_blocks(0);
      slice.set_output(v1::SLICE_OUTPUT_SAMPLE);
      slice.mutable_sampling();
      CARAVAN_CHECK(worker().Receive(std::move(step)).ok());
      const v1::Step done = hops_.back().Take();
      EXPECT_FALSE(done.has_error()) << done.error().message();
      if (done.has_error()) return {};
      tokens.push_back(done.results(0).sampled(0).token_id());
    }
    return tokens;
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
  ReadBytes read_;
  uint64_t step_id_ = 1000;   // of Tokens
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
  // The layer that it still has chooses as it did.
  EXPECT_EQ(worker().load().experts().misses(), load.misses());
  EXPECT_EQ(worker().load().experts().reads(), load.reads());
  EXPECT_EQ(worker().load().experts().hits(), load.hits() + PackedToy::kChosen);
}

TEST_F(OffloadingWorkerTest, OfLayersThatStayNothingIsReadAgain) {
  environment_.experts.guesses = ExpertStore::Guesses::kNever;
  ASSERT_TRUE(Load(Stage(7, 3, kManySlots)).has_ready());
  TakeReadBytes();
  const std::vector<uint32_t> tokens = Tokens(7, kFewTokens);
  int64_t bytes = ExpertBytes();
  ASSERT_GT(bytes, 0);
  // The last layer and the head go, and come back: by another order, and after a time without any.
  ASSERT_TRUE(Load(Stage(8, 2, kManySlots)).has_ready());
  EXPECT_EQ(TakeReadBytes(), (std::map<int, int64_t>{}));
  EXPECT_EQ(ExpertBytes(), bytes);
  RunStep(8, 1);
  DropStage(8);
  ASSERT_TRUE(Load(Stage(9, 3, kManySlots)).has_ready());
  const std::map<int, int64_t> read = TakeReadBytes();
  EXPECT_FALSE(read.contains(0));
  EXPECT_FALSE(read.contains(1));
  EXPECT_TRUE(read.contains(2));
  // Of what the same tokens choose, only what layer 2 chooses is not there.
  const v1::ExpertLoad before = worker().load().experts();
  EXPECT_EQ(Tokens(9, kFewTokens), tokens);
  const v1::ExpertLoad after = worker().load().experts();
  EXPECT_LE(after.misses() - before.misses(), uint64_t{kFewTokens * PackedToy::kChosen});
  EXPECT_GE(after.hits() - before.hits(), uint64_t{kFewTokens * PackedToy::kChosen});
  // With the same layers nothing is.
  bytes = ExpertBytes();
  ASSERT_TRUE(Load(Stage(10, 3, kManySlots)).has_ready());
  EXPECT_EQ(TakeReadBytes(), (std::map<int, int64_t>{}));
  EXPECT_EQ(Tokens(10, kFewTokens), tokens);
  EXPECT_EQ(ExpertBytes(), bytes);
}

TEST_F(OffloadingWorkerTest, TokensStayWhateverBecomesOfTheSlots) {
  ASSERT_TRUE(Load(7, 3).has_ready());
  const std::vector<uint32_t> tokens = Tokens(7, 12);
  TakeReadBytes();
  uint64_t plan = 8;
  // Of 32 experts some slots, all, and none: 0 has them resident.
  for (const int slots : {9, 5, 32, 0, 4, 31, 0, 16}) {
    const v1::WorkerReport report = Load(Stage(plan, 3, slots));
    ASSERT_TRUE(report.has_ready()) << report.failure().message();
    const std::map<int, int64_t> read = TakeReadBytes();
    if (slots > 0) {
      EXPECT_FALSE(read.contains(0) || read.contains(-1)) << slots << " slots";
    }
    EXPECT_EQ(Tokens(plan, 12), tokens) << slots << " slots";
    ++plan;
  }
}

TEST_F(OffloadingWorkerTest, AStageThatLeavesExpertsAndOneThatHasThemShareTheRest) {
  ASSERT_TRUE(Load(7, 3).has_ready());
  const std::map<int, int64_t> first = TakeReadBytes();
  ASSERT_TRUE(Load(Stage(8, 3, /*slots=*/0)).has_ready());
  const std::map<int, int64_t> experts = TakeReadBytes();
  EXPECT_FALSE(experts.contains(0));
  for (const int layer : {1, 2}) {
    // Runs are padded.
    EXPECT_LE(experts.at(layer), PackedToy::kExperts * toy_->run_bytes()) << layer;
    EXPECT_GT(experts.at(layer), first.at(layer)) << layer;
  }
  ASSERT_TRUE(Load(9, 3).has_ready());
  EXPECT_EQ(TakeReadBytes(), (std::map<int, int64_t>{}));
}

TEST_F(OffloadingWorkerTest, AStageThatWasPreparedBeginsWithWhatTheFormerOneHeld) {
  environment_.experts.guesses = ExpertStore::Guesses::kNever;
  ASSERT_TRUE(Load(Stage(7, 3, kManySlots)).has_ready());
  const std::vector<uint32_t> tokens = Tokens(7, kFewTokens);
  DropStage(7);
  TakeReadBytes();
  const int64_t bytes = ExpertBytes();
  const auto prepare = [this](uint64_t plan) {
    v1::WorkerOrder order;
    *order.mutable_prepare_stage()->mutable_stage() = Stage(plan, 3, kManySlots);
    worker().Handle(order);
    EXPECT_TRUE(NextReport().has_prepared());
  };
  prepare(8);
  prepare(9);  // instead of which
  ASSERT_TRUE(Load(Stage(9, 3, kManySlots)).has_ready());
  EXPECT_EQ(Tokens(9, kFewTokens), tokens);
  EXPECT_EQ(TakeReadBytes(), (std::map<int, int64_t>{}));
  EXPECT_EQ(ExpertBytes(), bytes);
}

/// A plan that comes to nothing, in the midst of its loading or after it.
TEST_F(OffloadingWorkerTest, AStageThatCouldNotBeLoadedCostsTheFormerOneNothing) {
  environment_.experts.guesses = ExpertStore::Guesses::kNever;
  // Reads of the last layer wait until the load is stopped, as a slow disk's may.
  std::atomic<bool> waits = false;
  BoundedQueue<int> waiting(100);
  class SlowSource : public CountedSource {
   public:
    SlowSource(ReadBytes* read, BoundedQueue<int>* waiting, std::stop_token stop)
        : CountedSource(toy_->model(), read), waiting_(waiting), stop_(std::move(stop)) {}
    absl::Status ReadPart(absl::string_view name, int64_t offset,
                          absl::Span<std::byte> out) const override {
      if (!absl::StartsWith(name, "model.layers.2.")) {
        return CountedSource::ReadPart(name, offset, out);
      }
      EXPECT_TRUE(waiting_->TryPush(1));
      std::promise<void> stopped;
      const std::stop_callback tell(stop_, [&stopped] { stopped.set_value(); });
      stopped.get_future().wait();
      return absl::CancelledError("stopped");
    }

   private:
    BoundedQueue<int>* const waiting_;
    const std::stop_token stop_;
  };
  environment_.open_model =
      [&](const v1::LoadStage&, const LoadProgress&,
          std::stop_token stop) -> absl::StatusOr<std::unique_ptr<TensorSource>> {
    if (waits) return std::make_unique<SlowSource>(&read_, &waiting, std::move(stop));
    return std::make_unique<CountedSource>(toy_->model(), &read_);
  };
  const auto open_next_hop = environment_.open_next_hop;
  std::atomic<bool> has_hop = true;
  environment_.open_next_hop =
      [&](const v1::LoadStage& order, std::function<void(absl::Status)> on_broken,
          std::stop_token stop) -> absl::StatusOr<std::unique_ptr<ActivationChannel>> {
    if (!has_hop) return absl::UnavailableError("nobody is there");
    return open_next_hop(order, std::move(on_broken), std::move(stop));
  };
  std::atomic<bool> has_archive = true;
  environment_.kv_archive = [&](const v1::KvArchives&) -> absl::StatusOr<KvArchive::Place> {
    if (!has_archive) return absl::UnavailableError("its disk is away");
    return KvArchive::Place();
  };
  ASSERT_TRUE(Load(7, 2).has_ready());
  RunStep(7, 1);
  TakeReadBytes();
  const int64_t bytes = ExpertBytes();

  waits = true;
  v1::WorkerOrder order;
  *order.mutable_load_stage() = Stage(8, 3);
  worker().Handle(order);
  waiting.Pop();
  waits = false;
  ASSERT_TRUE(Load(9, 2).has_ready());
  RunStep(9, 1);
  EXPECT_EQ(TakeReadBytes(), (std::map<int, int64_t>{}));
  EXPECT_EQ(ExpertBytes(), bytes);

  has_hop = false;
  EXPECT_TRUE(Load(10, 3).has_failure());
  TakeReadBytes();
  has_hop = true;
  ASSERT_TRUE(Load(11, 3).has_ready());
  RunStep(11, 1);
  EXPECT_EQ(TakeReadBytes(), (std::map<int, int64_t>{}));
  const int64_t bytes_of_11 = ExpertBytes();
  EXPECT_EQ(bytes_of_11, bytes + PackedToy::kChosen * toy_->run_bytes())
      << "what the new layer chooses";

  has_archive = false;
  EXPECT_TRUE(Load(12, 3).has_failure());
  has_archive = true;
  ASSERT_TRUE(Load(13, 3).has_ready());
  RunStep(13, 1);
  EXPECT_EQ(TakeReadBytes(), (std::map<int, int64_t>{}));
  EXPECT_EQ(ExpertBytes(), bytes_of_11);
}

TEST_F(OffloadingWorkerTest, WeightsThatAFailedLoadReadAreNotReadAgain) {
  class BrokenSource : public CountedSource {
   public:
    explicit BrokenSource(ReadBytes* read) : CountedSource(toy_->model(), read) {}
    absl::Status ReadPart(absl::string_view name, int64_t offset,
                          absl::Span<std::byte> out) const override {
      if (absl::StartsWith(name, "model.layers.2.")) return absl::UnavailableError("it is away");
      return CountedSource::ReadPart(name, offset, out);
    }
  };
  const auto open_model = environment_.open_model;
  std::atomic<bool> is_broken = true;
  environment_.open_model =
      [&](const v1::LoadStage& order, const LoadProgress& progress,
          std::stop_token stop) -> absl::StatusOr<std::unique_ptr<TensorSource>> {
    if (is_broken) return std::make_unique<BrokenSource>(&read_);
    return open_model(order, progress, std::move(stop));
  };
  EXPECT_TRUE(Load(7, 3).has_failure());
  const std::map<int, int64_t> before = TakeReadBytes();
  EXPECT_TRUE(before.contains(0));
  EXPECT_TRUE(before.contains(1));
  is_broken = false;
  ASSERT_TRUE(Load(8, 3).has_ready());
  const std::map<int, int64_t> after = TakeReadBytes();
  EXPECT_FALSE(after.contains(0));
  EXPECT_FALSE(after.contains(1));
  EXPECT_TRUE(after.contains(2));
  RunStep(8, 1);
}

TEST_F(OffloadingWorkerTest, ExpertsOfAnotherModelOrOfADroppedSessionAreReadAgain) {
  environment_.experts.guesses = ExpertStore::Guesses::kNever;
  ASSERT_TRUE(Load(7, 3).has_ready());
  RunStep(7, 1);
  int64_t bytes = ExpertBytes();
  v1::LoadStage other = Stage(8, 3);
  other.mutable_model()->set_fingerprint(toy_->model().fingerprint() + 1);
  ASSERT_TRUE(Load(other).has_ready());
  RunStep(8, 1);
  EXPECT_EQ(ExpertBytes(), 2 * bytes);
  bytes = ExpertBytes();
  worker().Drop();
  ASSERT_TRUE(Load(9, 3).has_ready());
  RunStep(9, 1);
  EXPECT_GT(ExpertBytes(), bytes);
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

TEST_F(OffloadingWorkerTest, WhatLayInTheHostsMemoryBesideACardStays) {
  environment_.experts.guesses = ExpertStore::Guesses::kNever;
  environment_.make_backend = [&](const ModelConfig&,
                                  int64_t) -> absl::StatusOr<std::unique_ptr<Backend>> {
    return std::make_unique<FakeCard>(*MakeCpuBackend({}));
  };
  environment_.make_cpu = [] { return MakeCpuBackend({}); };
  environment_.card_ram_bytes = int64_t{1} << 30;
  const auto load = [this](uint64_t plan) {
    const v1::WorkerReport report = Load(Stage(plan, 3, /*slots=*/8));
    EXPECT_TRUE(report.has_ready()) << report.failure().message();
  };
  load(7);
  const std::vector<uint32_t> tokens = Tokens(7, 12);
  // The host has room for all experts, and read all.
  const int64_t bytes = ExpertBytes();
  EXPECT_GT(bytes, 0);
  load(8);
  EXPECT_EQ(Tokens(8, 12), tokens);
  EXPECT_EQ(ExpertBytes(), bytes);
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
