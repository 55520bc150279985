#include "worker/worker.h"

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "base/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/fake_card.h"
#include "tests/support/golden.h"
#include "tests/worker/borrowed_source.h"
#include "tests/worker/fake_hop.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

void WaitForStop(const std::stop_token& stop) {
  std::promise<void> stopped;
  const std::stop_callback tell(stop, [&stopped] { stopped.set_value(); });
  stopped.get_future().wait();
}

struct ReadLog {
  Mutex mu;
  std::set<int> layers ABSL_GUARDED_BY(mu);
};

/// Says of which layers something is read.
class LoggedSource : public BorrowedSource {
 public:
  LoggedSource(const TensorSource& source, ReadLog* log) : BorrowedSource(source), log_(log) {}
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override {
    constexpr absl::string_view kPrefix = "model.layers.";
    if (absl::StartsWith(name, kPrefix)) {
      MutexLock lock(&log_->mu);
      log_->layers.insert(std::stoi(std::string(name.substr(kPrefix.size()))));
    }
    return BorrowedSource::ReadPart(name, offset, out);
  }

 private:
  ReadLog* const log_;
};

/// A worker in a world of fakes, which `open_model` and `open_next_hop` may change.
class WorkerTest : public ::testing::Test {
 protected:
  using OpenModel = std::function<absl::StatusOr<std::unique_ptr<TensorSource>>(
      const v1::LoadStage&, const LoadProgress&, std::stop_token)>;
  using OpenNextHop = std::function<absl::StatusOr<std::unique_ptr<ActivationChannel>>(
      const v1::LoadStage&, std::function<void(absl::Status)>, std::stop_token)>;

  Worker& worker() {
    if (worker_ != nullptr) return *worker_;
    Worker::Environment environment;
    environment.name = "worker box-a";
    environment.make_backend = make_backend_;
    environment.check_device = [this] { return device_; };
    environment.on_card_lost = [this](const absl::Status& why) {
      EXPECT_TRUE(cards_lost_.TryPush(why));
    };
    environment.open_model = open_model_;
    environment.open_next_hop = open_next_hop_;
    environment.show_progress = [](int64_t, int64_t) {};
    environment.report = [this](v1::WorkerReport report) {
      EXPECT_TRUE(reports_.TryPush(std::move(report)));
    };
    worker_ = std::make_unique<Worker>(std::move(environment));
    return *worker_;
  }

  std::function<absl::StatusOr<std::unique_ptr<Backend>>(const ModelConfig&, int64_t)>
      make_backend_ = [](const ModelConfig&, int64_t) { return MakeCpuBackend({}); };
  FakeCardMemory* card_memory_ = nullptr;  // of the last LoadOnCardAndWait
  absl::Status device_;                    // what Check says of it
  BoundedQueue<absl::Status> cards_lost_{4};

  v1::WorkerOrder LoadOrder(uint64_t plan, uint32_t first_layer = 0, uint32_t end_layer = 1) const {
    v1::WorkerOrder order;
    v1::LoadStage& load = *order.mutable_load_stage();
    load.set_plan_version(plan);
    load.mutable_stage()->set_first_layer(first_layer);
    load.mutable_stage()->set_end_layer(end_layer);
    load.mutable_stage()->set_embeds(first_layer == 0);
    load.mutable_model()->set_config_json(checkpoint_->config_json());
    load.set_kv_budget_bytes(1 << 20);
    load.set_max_step_tokens(8);
    return order;
  }

  v1::WorkerOrder PrepareOrder(uint64_t plan, uint32_t first_layer, uint32_t end_layer) const {
    v1::WorkerOrder order;
    *order.mutable_prepare_stage()->mutable_stage() =
        LoadOrder(plan, first_layer, end_layer).load_stage();
    return order;
  }

  /// The next report that is no progress.
  v1::WorkerReport NextReport() {
    while (true) {
      v1::WorkerReport report = *reports_.Pop();
      if (!report.has_progress()) return report;
    }
  }
  void ExpectNoReport() { EXPECT_FALSE(reports_.PopWithTimeout(absl::ZeroDuration()).has_value()); }

  void LoadAndWait(uint64_t plan, uint32_t first_layer = 0, uint32_t end_layer = 1) {
    worker().Handle(LoadOrder(plan, first_layer, end_layer));
    const v1::WorkerReport report = NextReport();
    ASSERT_TRUE(report.has_ready()) << report.failure().message();
    EXPECT_EQ(report.ready().plan_version(), plan);
  }
  /// The same on a fake card, whose memory is returned.
  FakeCardMemory& LoadOnCardAndWait(uint64_t plan) {
    make_backend_ = [this](const ModelConfig&,
                           int64_t) -> absl::StatusOr<std::unique_ptr<Backend>> {
      auto card = std::make_unique<FakeCard>(*MakeCpuBackend({}));
      card_memory_ = &card->memory();
      return card;
    };
    LoadAndWait(plan);
    return *card_memory_;
  }

  void LogReads() {
    open_model_ = [this](const v1::LoadStage&, const LoadProgress&, std::stop_token) {
      return std::make_unique<LoggedSource>(*checkpoint_, &reads_);
    };
  }
  /// Layers of which something was read since the last call.
  std::set<int> TakeLayersRead() {
    MutexLock lock(&reads_.mu);
    return std::exchange(reads_.layers, {});
  }

  static v1::Step MakeStep(uint64_t plan, uint64_t id) {
    v1::Step step;
    step.set_plan_version(plan);
    step.set_step_id(id);
    return step;
  }
  static v1::Step MakeStepOfOneToken(uint64_t plan, uint64_t id) {
    v1::Step step = MakeStep(plan, id);
    v1::SequenceSlice& slice = *step.add_slices();
    slice.set_sequence_id(1);
    slice.add_token_ids(3);
    slice.add_kv_blocks(0);
    slice.set_output(v1::SLICE_OUTPUT_NONE);
    return step;
  }

  const std::unique_ptr<Checkpoint> checkpoint_ =
      MustOpenCheckpoint(SmallGoldenModel("v3-like").directory);
  FakeHop hop_;
  std::function<void(absl::Status)> on_broken_;  // of the last hop; set before StageReady
  BoundedQueue<v1::WorkerReport> reports_{1000};
  absl::Status fails_to_open_;
  OpenModel open_model_ = [this](const v1::LoadStage&, const LoadProgress&,
                                 std::stop_token) -> absl::StatusOr<std::unique_ptr<TensorSource>> {
    if (!fails_to_open_.ok()) return fails_to_open_;
    return std::make_unique<BorrowedSource>(*checkpoint_);
  };
  ReadLog reads_;
  OpenNextHop open_next_hop_ =
      [this](const v1::LoadStage&, std::function<void(absl::Status)> on_broken, std::stop_token) {
        on_broken_ = std::move(on_broken);
        return hop_.Connect();
      };
  std::unique_ptr<Worker> worker_;  // last: its threads use all of the above
};

TEST_F(WorkerTest, LoadsItsStageReportsAndRunsSteps) {
  worker().Handle(LoadOrder(7));
  uint64_t loaded = 0;
  v1::WorkerReport report = *reports_.Pop();
  for (; report.has_progress(); report = *reports_.Pop()) {
    EXPECT_EQ(report.progress().plan_version(), 7u);
    EXPECT_GE(report.progress().loaded_bytes(), loaded);
    loaded = report.progress().loaded_bytes();
    EXPECT_LE(loaded, report.progress().total_bytes());
  }
  EXPECT_GT(loaded, 0u);
  ASSERT_TRUE(report.has_ready()) << report.failure().message();
  EXPECT_EQ(report.ready().plan_version(), 7u);
  EXPECT_GT(report.ready().kv_blocks(), 0u);
  EXPECT_EQ(report.ready().kv_block_tokens(), kKvBlockTokens);
  ASSERT_TRUE(worker().Receive(MakeStep(7, 1)).ok());
  EXPECT_EQ(hop_.Take().step_id(), 1u);
}

TEST_F(WorkerTest, WithoutAStageStepsAreAborted) {
  EXPECT_EQ(worker().Receive(MakeStep(7, 1)).code(), absl::StatusCode::kAborted);
  LoadAndWait(7);
  EXPECT_EQ(worker().Receive(MakeStep(6, 1)).code(), absl::StatusCode::kAborted);
  v1::WorkerOrder drop;
  drop.mutable_drop_stage()->set_plan_version(7);
  worker().Handle(drop);
  EXPECT_EQ(worker().Receive(MakeStep(7, 1)).code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, FilesThatTheModelFetchesCountAsLoading) {
  constexpr uint64_t kFiles = 1 << 30;
  open_model_ = [this](const v1::LoadStage&, const LoadProgress& progress,
                       std::stop_token) -> absl::StatusOr<std::unique_ptr<TensorSource>> {
    EXPECT_TRUE(progress(kFiles / 2, kFiles + 1));
    EXPECT_TRUE(progress(kFiles, kFiles + 1));
    return std::make_unique<BorrowedSource>(*checkpoint_);
  };
  worker().Handle(LoadOrder(7));
  std::vector<v1::StageProgress> told;
  while (true) {
    const v1::WorkerReport report = *reports_.Pop();
    if (!report.has_progress()) {
      EXPECT_TRUE(report.has_ready());
      break;
    }
    told.push_back(report.progress());
  }
  ASSERT_GT(told.size(), 2u);
  EXPECT_EQ(told[0].loaded_bytes(), kFiles / 2);
  EXPECT_EQ(told[1].loaded_bytes(), kFiles);
  EXPECT_GE(told[2].loaded_bytes(), kFiles);
  EXPECT_GT(told.back().total_bytes(), kFiles + 1);
  EXPECT_EQ(told.back().loaded_bytes(), told.back().total_bytes());
}

TEST_F(WorkerTest, AFailedLoadIsReportedWithItsCode) {
  open_model_ = [](const v1::LoadStage&, const LoadProgress&, std::stop_token) {
    return absl::NotFoundError("/models/r1: no such directory");
  };
  worker().Handle(LoadOrder(7));
  const v1::WorkerReport report = NextReport();
  EXPECT_EQ(report.failure().plan_version(), 7u);
  EXPECT_EQ(report.failure().code(), static_cast<int>(absl::StatusCode::kNotFound));
  EXPECT_EQ(report.failure().message(), "worker box-a: /models/r1: no such directory");
  worker().Drop();
  ExpectNoReport();
}

TEST_F(WorkerTest, AConfigThatCannotBeReadIsAFailure) {
  v1::WorkerOrder order = LoadOrder(7);
  order.mutable_load_stage()->mutable_model()->set_config_json("{");
  worker().Handle(order);
  EXPECT_THAT(NextReport().failure().message(), HasSubstr("the coordinator's config.json"));
}

TEST_F(WorkerTest, TheBudgetOfExpertsReachesTheModelAndTheStage) {
  uint64_t asked = 0;
  open_model_ = [&](const v1::LoadStage& order, const LoadProgress&, std::stop_token) {
    asked = order.expert_budget_bytes();
    return std::make_unique<BorrowedSource>(*checkpoint_);
  };
  v1::WorkerOrder order = LoadOrder(7);
  order.mutable_load_stage()->set_expert_budget_bytes(1 << 20);
  order.mutable_load_stage()->mutable_stage()->set_end_layer(2);
  worker().Handle(order);
  const v1::WorkerReport report = NextReport();
  EXPECT_EQ(asked, 1u << 20);
  // Not a packed model.
  EXPECT_EQ(report.failure().code(), static_cast<int>(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(report.failure().message(), HasSubstr("routed experts can stay on disk only"));
}

TEST_F(WorkerTest, DropStopsALoadThatWaitsAndReportsNothing) {
  std::promise<void> begun;
  open_model_ = [&](const v1::LoadStage&, const LoadProgress&,
                    std::stop_token stop) -> absl::StatusOr<std::unique_ptr<TensorSource>> {
    begun.set_value();
    WaitForStop(stop);
    return absl::CancelledError("stopped");
  };
  worker().Handle(LoadOrder(7));
  begun.get_future().wait();
  worker().Drop();
  ExpectNoReport();
}

TEST_F(WorkerTest, DropStopsALoadThatOpensItsNextHop) {
  std::promise<void> begun;
  open_next_hop_ = [&](const v1::LoadStage&, std::function<void(absl::Status)>,
                       std::stop_token stop) -> absl::StatusOr<std::unique_ptr<ActivationChannel>> {
    begun.set_value();
    WaitForStop(stop);
    return absl::CancelledError("stopped");
  };
  worker().Handle(LoadOrder(7));
  begun.get_future().wait();
  worker().Drop();
  while (std::optional<v1::WorkerReport> report = reports_.PopWithTimeout(absl::ZeroDuration())) {
    EXPECT_TRUE(report->has_progress());
  }
}

TEST_F(WorkerTest, ASecondLoadStageReplacesTheFirst) {
  std::promise<void> begun;
  std::atomic<bool> first{true};
  open_model_ = [&](const v1::LoadStage&, const LoadProgress&,
                    std::stop_token stop) -> absl::StatusOr<std::unique_ptr<TensorSource>> {
    if (first.exchange(false)) {
      begun.set_value();
      WaitForStop(stop);
      return absl::CancelledError("stopped");
    }
    return std::make_unique<BorrowedSource>(*checkpoint_);
  };
  worker().Handle(LoadOrder(7));
  begun.get_future().wait();
  LoadAndWait(8);  // while 7 was loading
  EXPECT_TRUE(worker().Receive(MakeStep(8, 1)).ok());
  LoadAndWait(9);  // while 8 runs
  EXPECT_EQ(worker().Receive(MakeStep(8, 2)).code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, AStageIsPreparedWholeWhereThereIsNoneAndServesWhenItsPlanBegins) {
  LogReads();
  worker().Handle(PrepareOrder(7, 0, 2));
  EXPECT_EQ(NextReport().prepared().plan_version(), 7u);
  EXPECT_EQ(worker().Receive(MakeStep(7, 1)).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(TakeLayersRead(), (std::set<int>{0, 1}));
  worker().Handle(LoadOrder(7, 0, 2));
  EXPECT_EQ(NextReport().ready().plan_version(), 7u);
  EXPECT_TRUE(worker().Receive(MakeStep(7, 1)).ok());
  EXPECT_EQ(TakeLayersRead(), (std::set<int>{}));
}

TEST_F(WorkerTest, WhileOneStageServesWhatTheNextLacksIsRead) {
  LogReads();
  LoadAndWait(7, 0, 2);
  TakeLayersRead();
  v1::WorkerOrder prepare = PrepareOrder(8, 1, 3);
  prepare.mutable_prepare_stage()->set_memory_bytes(uint64_t{1} << 40);
  worker().Handle(prepare);
  EXPECT_EQ(NextReport().prepared().plan_version(), 8u);
  EXPECT_EQ(TakeLayersRead(), (std::set<int>{2}));
  EXPECT_TRUE(worker().Receive(MakeStep(7, 1)).ok()) << "it serves meanwhile";
  LoadAndWait(8, 1, 3);
  EXPECT_EQ(TakeLayersRead(), (std::set<int>{}));
  EXPECT_TRUE(worker().Receive(MakeStep(8, 1)).ok());
}

TEST_F(WorkerTest, WithoutRoomBesideItTheRestIsReadWhenTheStageHasGone) {
  LogReads();
  LoadAndWait(7, 0, 2);
  TakeLayersRead();
  worker().Handle(PrepareOrder(8, 1, 3));
  EXPECT_EQ(NextReport().prepared().plan_version(), 8u);
  EXPECT_EQ(TakeLayersRead(), (std::set<int>{}));
  LoadAndWait(8, 1, 3);
  EXPECT_EQ(TakeLayersRead(), (std::set<int>{2})) << "layer 1 stayed";
}

TEST_F(WorkerTest, WithoutRoomForFilesBesideItsStageNothingIsPreparedAndTheStageIsLoadedLater) {
  LogReads();
  const auto open_model = open_model_;
  std::atomic<bool> has_room = true;
  open_model_ = [&](const v1::LoadStage& order, const LoadProgress& progress,
                    std::stop_token stop) -> absl::StatusOr<std::unique_ptr<TensorSource>> {
    if (!has_room) return absl::ResourceExhaustedError("no room in the cache");
    return open_model(order, progress, std::move(stop));
  };
  LoadAndWait(7, 0, 2);
  TakeLayersRead();
  has_room = false;
  worker().Handle(PrepareOrder(8, 1, 3));
  EXPECT_EQ(NextReport().prepared().plan_version(), 8u);
  has_room = true;
  LoadAndWait(8, 1, 3);
  EXPECT_EQ(TakeLayersRead(), (std::set<int>{2}));
}

TEST_F(WorkerTest, WeightsOfAPlanThatEndedServeTheNextOne) {
  LogReads();
  LoadAndWait(7, 0, 2);
  TakeLayersRead();
  v1::WorkerOrder drop;
  drop.mutable_drop_stage()->set_plan_version(7);
  worker().Handle(drop);
  LoadAndWait(8, 1, 3);
  EXPECT_EQ(TakeLayersRead(), (std::set<int>{2}));
  worker().Drop();  // of all
  LoadAndWait(9, 1, 3);
  EXPECT_EQ(TakeLayersRead(), (std::set<int>{1, 2}));
}

TEST_F(WorkerTest, APreparationThatComesToNothingLeavesTheStageAlone) {
  LogReads();
  LoadAndWait(7, 0, 2);
  v1::WorkerOrder prepare = PrepareOrder(8, 1, 3);
  prepare.mutable_prepare_stage()->set_memory_bytes(uint64_t{1} << 40);
  worker().Handle(prepare);
  EXPECT_TRUE(NextReport().has_prepared());
  TakeLayersRead();
  v1::WorkerOrder drop;
  drop.mutable_drop_stage()->set_plan_version(8);
  worker().Handle(drop);
  EXPECT_TRUE(worker().Receive(MakeStep(7, 1)).ok());
  drop.mutable_drop_stage()->set_plan_version(7);
  worker().Handle(drop);
  EXPECT_EQ(worker().Receive(MakeStep(7, 2)).code(), absl::StatusCode::kAborted);
  // What was read for it went with it; what the stage had is there.
  LoadAndWait(9, 1, 3);
  EXPECT_EQ(TakeLayersRead(), (std::set<int>{2}));
}

TEST_F(WorkerTest, APreparationThatFailsIsReportedAndTheStageServesOn) {
  LoadAndWait(7);
  fails_to_open_ = absl::NotFoundError("no such directory");
  worker().Handle(PrepareOrder(8, 1, 3));
  const v1::WorkerReport report = NextReport();
  EXPECT_EQ(report.failure().plan_version(), 8u);
  EXPECT_EQ(report.failure().code(), static_cast<int>(absl::StatusCode::kNotFound));
  EXPECT_TRUE(worker().Receive(MakeStep(7, 1)).ok());
}

TEST_F(WorkerTest, ACardsWeightsGoWithTheirStage) {
  LogReads();
  LoadOnCardAndWait(7);
  TakeLayersRead();
  LoadAndWait(8);
  EXPECT_EQ(TakeLayersRead(), (std::set<int>{0}));
}

TEST_F(WorkerTest, ItsLoadOutlivesItsStages) {
  EXPECT_EQ(worker().load().total_s(), 0);
  LoadAndWait(7);
  v1::Step step = MakeStep(7, 1);
  v1::SequenceSlice& slice = *step.add_slices();
  slice.add_token_ids(5);
  slice.add_token_ids(6);
  slice.add_kv_blocks(0);
  slice.set_output(v1::SLICE_OUTPUT_NONE);
  ASSERT_TRUE(worker().Receive(std::move(step)).ok());
  const v1::Step done = hop_.Take();
  EXPECT_FALSE(done.has_error()) << done.error().message();
  const v1::WorkerLoad load = worker().load();
  EXPECT_EQ(load.steps(), 1u);
  EXPECT_EQ(load.rows(), 2u);
  EXPECT_GT(load.busy_s(), 0);
  EXPECT_GE(load.total_s(), load.busy_s());
  worker().Drop();
  const v1::WorkerLoad after = worker().load();
  EXPECT_EQ(after.steps(), 1u);
  EXPECT_GE(after.total_s(), load.total_s());
  EXPECT_EQ(worker().load().total_s(), after.total_s());  // without a stage it stands still
}

TEST_F(WorkerTest, ALostHopIsReportedOnceWhoeverNoticesIt) {
  LoadAndWait(7);
  hop_.Break(absl::UnavailableError("worker b is gone"));
  on_broken_(absl::UnavailableError("worker b is gone"));
  ASSERT_TRUE(worker().Receive(MakeStep(7, 1)).ok());
  EXPECT_EQ(NextReport().failure().message(),
            "worker box-a: the next hop is lost: worker b is gone");
  worker().Drop();
  ExpectNoReport();
}

TEST_F(WorkerTest, AHopThatBreaksWhileItIsOpenedIsReportedOnce) {
  open_next_hop_ = [](const v1::LoadStage&, std::function<void(absl::Status)> on_broken,
                      std::stop_token) -> absl::StatusOr<std::unique_ptr<ActivationChannel>> {
    on_broken(absl::UnavailableError("worker b is gone"));
    return absl::UnavailableError("worker b is gone");
  };
  worker().Handle(LoadOrder(7));
  EXPECT_THAT(NextReport().failure().message(), HasSubstr("worker b is gone"));
  worker().Drop();
  ExpectNoReport();
}

TEST_F(WorkerTest, DropReleasesWhoeverWaitsToBringAStep) {
  LoadAndWait(7);
  hop_.Hold();
  ASSERT_TRUE(worker().Receive(MakeStep(7, 1)).ok());
  hop_.WaitForASendThatWaits();
  absl::Status refused;
  std::atomic<uint64_t> id{1};
  std::thread sender([&] {
    while (refused.ok()) refused = worker().Receive(MakeStep(7, ++id));
  });
  // One is being sent, the queue is full, and this one waits.
  while (id < StepLoop::kQueuedSteps + 2) std::this_thread::yield();
  worker().Drop();
  sender.join();
  EXPECT_THAT(refused.code(),
              ::testing::AnyOf(absl::StatusCode::kUnavailable, absl::StatusCode::kAborted));
}

TEST_F(WorkerTest, ACardThatFailsForGoodIsReportedAndTold) {
  FakeCardMemory& memory = LoadOnCardAndWait(7);
  const v1::Step step = MakeStepOfOneToken(7, 1);
  memory.Fail(absl::StatusCode::kInternal);
  ASSERT_TRUE(worker().Receive(step).ok());
  const v1::WorkerReport report = NextReport();
  ASSERT_TRUE(report.has_failure());
  EXPECT_EQ(report.failure().code(), static_cast<int32_t>(absl::StatusCode::kInternal));
  EXPECT_THAT(report.failure().message(), HasSubstr("the card is lost"));
  EXPECT_THAT(report.failure().message(), HasSubstr("the card says no"));
  EXPECT_EQ(cards_lost_.Pop()->code(), absl::StatusCode::kInternal);
}

TEST_F(WorkerTest, ACardThatIsLostWhenAStageIsLoadedIsToldToo) {
  make_backend_ = [](const ModelConfig&, int64_t) -> absl::StatusOr<std::unique_ptr<Backend>> {
    return absl::InternalError("an illegal address was met");
  };
  device_ = absl::InternalError("an illegal address was met");
  worker().Handle(LoadOrder(7));
  EXPECT_EQ(NextReport().failure().message(),
            "worker box-a: the card is lost: an illegal address was met");
  EXPECT_EQ(cards_lost_.Pop()->code(), absl::StatusCode::kInternal);
}

TEST_F(WorkerTest, AnErrorThatLeavesTheCardOfUseIsNoLoss) {
  make_backend_ = [](const ModelConfig&, int64_t) -> absl::StatusOr<std::unique_ptr<Backend>> {
    return absl::InternalError("something else");
  };
  worker().Handle(LoadOrder(7));
  EXPECT_EQ(NextReport().failure().message(), "worker box-a: something else");
  worker().Drop();
  EXPECT_FALSE(cards_lost_.PopWithTimeout(absl::ZeroDuration()).has_value());
}

TEST_F(WorkerTest, ACardWithoutMemoryForAStageIsRefusedByName) {
  make_backend_ = [](const ModelConfig&, int64_t) -> absl::StatusOr<std::unique_ptr<Backend>> {
    return std::make_unique<FakeCard>(*MakeCpuBackend({}), /*budget_bytes=*/1 << 20);
  };
  worker().Handle(LoadOrder(7));
  const v1::StageFailure failure = NextReport().failure();
  EXPECT_EQ(failure.code(), static_cast<int32_t>(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(failure.message(), HasSubstr("worker box-a: "));
  EXPECT_THAT(failure.message(), HasSubstr("the card has no "));
}

TEST_F(WorkerTest, ACardThatRunsOutOfMemoryFailsTheStepAndGoesOn) {
  FakeCardMemory& memory = LoadOnCardAndWait(7);
  v1::Step step = MakeStepOfOneToken(7, 1);
  memory.Fail(absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(worker().Receive(step).ok());
  const v1::Step failed = hop_.Take();
  EXPECT_EQ(failed.error().code(), static_cast<int32_t>(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(failed.error().message(), HasSubstr("worker box-a, "));
  memory.Fail(absl::StatusCode::kOk);
  step.set_step_id(2);
  ASSERT_TRUE(worker().Receive(step).ok());
  EXPECT_FALSE(hop_.Take().has_error());
  worker().Drop();
  ExpectNoReport();
  EXPECT_FALSE(cards_lost_.PopWithTimeout(absl::ZeroDuration()).has_value());
}

}  // namespace
}  // namespace caravan
