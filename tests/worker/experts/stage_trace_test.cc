#include "worker/experts/stage_trace.h"

#include <tuple>
#include <vector>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/worker/experts/expert_testing.h"
#include "worker/experts/routing_trace.h"
#include "worker/stage.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kModel = 0xc0ffee;

/// A layer's visit.
using Visit = std::tuple<int, int64_t, std::vector<int32_t>>;  // layer, rows, ids

class Visits : public RoutingObserver {
 public:
  void OnRouting(int layer, int64_t num_rows, absl::Span<const int32_t> expert_ids,
                 absl::Span<const float> /*weights*/) override {
    seen.emplace_back(layer, num_rows, std::vector<int32_t>(expert_ids.begin(), expert_ids.end()));
  }
  std::vector<Visit> seen;
};

class StageTraceTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { toy_ = new PackedToy; }
  static void TearDownTestSuite() { delete toy_; }

  std::string Prefix() const { return dir_.File("trace"); }

  absl::StatusOr<std::unique_ptr<RoutingObserver>> Record(const StageSpec& spec,
                                                          uint64_t model = kModel) const {
    return RecordStage(Prefix(), model, toy_->config(), spec);
  }

  /// slots: 0 for all experts in memory.
  static std::unique_ptr<Stage> MakeStage(int slots, std::shared_ptr<RoutingObserver> routing) {
    Stage::Options options;
    options.kv_budget_bytes = 1 << 20;
    options.max_step_tokens = 8;
    options.expert_budget_bytes = slots * toy_->run_bytes();
    options.routing = std::move(routing);
    auto stage = Stage::Create(toy_->config(), toy_->whole(), toy_->model(), *MakeCpuBackend({}),
                               options, [](int64_t, int64_t) { return true; });
    CARAVAN_CHECK(stage.ok());
    return *std::move(stage);
  }

  /// A step that drafts from all of its rows.
  static void Run(Stage& stage, int first_position, int rows) {
    v1::Step step;
    v1::SequenceSlice& slice = *step.add_slices();
    slice.set_sequence_id(1);
    slice.set_first_position(static_cast<uint32_t>(first_position));
    for (int i = 0; i < rows; ++i) slice.add_token_ids(static_cast<uint32_t>(7 * i + rows));
    slice.set_next_token_id(1);
    slice.set_draft(true);
    slice.set_output(v1::SLICE_OUTPUT_LOGITS);
    slice.add_kv_blocks(0);
    const v1::Step done = stage.Run(step);
    ASSERT_FALSE(done.has_error()) << done.error().message();
  }

  static PackedToy* toy_;
  const TempDir dir_;
};

PackedToy* StageTraceTest::toy_ = nullptr;

TEST_F(StageTraceTest, ALayerIsShownOnceAStepThatOfDraftsLast) {
  const auto visits = std::make_shared<Visits>();
  const std::unique_ptr<Stage> stage = MakeStage(0, visits);
  Run(*stage, 0, 5);
  Run(*stage, 5, 2);
  ASSERT_EQ(visits->seen.size(), 6u);
  for (size_t i = 0; i < 6; ++i) {
    const auto& [layer, rows, ids] = visits->seen[i];
    EXPECT_EQ(layer, 1 + static_cast<int>(i % 3));
    EXPECT_EQ(rows, i < 3 ? 5 : 2);
    EXPECT_EQ(ids.size(), static_cast<size_t>(rows * PackedToy::kChosen));
  }
}

TEST_F(StageTraceTest, WhereExpertsLieChangesNothing) {
  const auto resident = std::make_shared<Visits>();
  const auto on_disk = std::make_shared<Visits>();
  Run(*MakeStage(0, resident), 0, 5);
  Run(*MakeStage(8, on_disk), 0, 5);
  EXPECT_EQ(resident->seen, on_disk->seen);
}

TEST_F(StageTraceTest, TheFileHasWhatWasShown) {
  const auto visits = std::make_shared<Visits>();
  Run(*MakeStage(0, visits), 0, 5);
  auto routing = Record(toy_->whole());
  ASSERT_TRUE(routing.ok()) << routing.status();
  const std::unique_ptr<Stage> stage = MakeStage(0, *std::move(routing));
  Run(*stage, 0, 5);
  stage->Finish();
  const auto reader = RoutingTraceReader::Open(Prefix() + "-1-4");
  ASSERT_TRUE(reader.ok()) << reader.status();
  const RoutingTraceHeader header = {.model_fingerprint = kModel,
                                     .first_layer = 1,
                                     .num_layers = 3,
                                     .n_routed_experts = PackedToy::kExperts,
                                     .num_experts_per_tok = PackedToy::kChosen};
  EXPECT_EQ((*reader)->header(), header);
  Visits read;
  ASSERT_TRUE((*reader)->Read(read).ok());
  EXPECT_EQ(read.seen, visits->seen);
  // The next stage of these layers goes on with it, though this one still is there.
  EXPECT_TRUE(Record(toy_->whole()).ok());
}

TEST_F(StageTraceTest, OtherLayersHaveAnotherFile) {
  const auto first = Record({0, 2, true, false, false});
  const auto second = Record({2, 3, false, true, false});
  const auto drafting = Record({2, 3, false, true, true});
  for (const char* layers : {"-1-2", "-2-3", "-2-4"}) EXPECT_TRUE(FileExists(Prefix() + layers));
  const auto dense = Record({0, 1, true, false, false});
  ASSERT_TRUE(dense.ok());
  EXPECT_EQ(*dense, nullptr);
}

TEST_F(StageTraceTest, AFileThatCannotBeGoneOnWithIsNamed) {
  { ASSERT_TRUE(Record(toy_->whole()).ok()); }
  const absl::Status other = Record(toy_->whole(), kModel + 1).status();
  EXPECT_EQ(other.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(other.message(), AllOf(HasSubstr(Prefix() + "-1-4"), HasSubstr("another model")));
  const absl::Status nowhere =
      RecordStage(dir_.File("none/trace"), kModel, toy_->config(), toy_->whole()).status();
  EXPECT_EQ(nowhere.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(nowhere.message(), HasSubstr(dir_.File("none/trace-1-4")));
}

}  // namespace
}  // namespace caravan
