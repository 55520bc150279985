// A stage whose memory is a card's computes what one in the host's does.

#include <filesystem>
#include <set>

#include "absl/strings/match.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/step_memory.h"
#include "tests/support/fake_card.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/experts/expert_testing.h"
#include "worker/experts/expert_cost_file.h"
#include "worker/stage.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr int kMaxRows = 64;

class CardStageTest : public ::testing::Test {
 protected:
  // In floats: what sums in another order round otherwise makes no activation's code another one.
  static void SetUpTestSuite() { toy_ = new PackedToy({DType::kF32, DType::kF32}); }
  static void TearDownTestSuite() { delete toy_; }

  static Stage::Options Options() {
    Stage::Options options;
    options.name = "worker 2 (box-b)";
    options.kv_budget_bytes = 16 << 20;
    options.max_step_tokens = kMaxRows;
    return options;
  }

  static absl::StatusOr<std::unique_ptr<Stage>> Create(std::unique_ptr<Backend> backend,
                                                       const Stage::Options& options,
                                                       const StageSpec& spec) {
    return Stage::Create(toy_->config(), spec, toy_->model(), std::move(backend), options,
                         [](int64_t, int64_t) { return true; });
  }
  static std::unique_ptr<Stage> MustCreate(std::unique_ptr<Backend> backend,
                                           const Stage::Options& options,
                                           const StageSpec& spec = toy_->whole()) {
    auto stage = Create(std::move(backend), options, spec);
    CARAVAN_CHECK(stage.ok());
    return *std::move(stage);
  }

  /// Logits of a prompt and of tokens after it, in blocks that are copied on the way.
  static std::vector<std::vector<float>> Outputs(const std::vector<Stage*>& stages) {
    std::vector<std::vector<float>> outputs;
    int position = 0;
    uint32_t block = 0;
    for (const int rows : {40, 1, 4, 1, 30, 1}) {
      v1::Step step = MakeToyStep(position, rows, {block, block + 1});
      if (position == 41) {
        step.mutable_slices(0)->set_kv_blocks(0, 5);
        step.mutable_slices(0)->set_kv_blocks(1, 6);
        v1::BlockCopy& copy = *step.add_block_copies();
        copy.set_from(0);
        copy.set_to(5);
        block = 5;
      }
      for (Stage* const stage : stages) step = stage->Run(std::move(step));
      EXPECT_FALSE(step.has_error()) << step.error().message();
      if (step.has_error()) return {};
      for (const std::string* bytes : {&step.results(0).logits(), &step.results(0).mtp_logits()}) {
        std::vector<float>& logits = outputs.emplace_back(bytes->size() / sizeof(float));
        std::memcpy(logits.data(), bytes->data(), bytes->size());
      }
      position += rows;
    }
    return outputs;
  }

  static PackedToy* toy_;
};

PackedToy* CardStageTest::toy_ = nullptr;

TEST_F(CardStageTest, GivesTheSameBits) {
  const auto expected = Outputs({MustCreate(*MakeCpuBackend({}), Options()).get()});
  EXPECT_EQ(std::set(expected.begin(), expected.end()).size(), 12u);
  const auto card = MustCreate(std::make_unique<FakeCard>(*MakeCpuBackend({})), Options());
  EXPECT_TRUE(Outputs({card.get()}) == expected);
}

TEST_F(CardStageTest, AHostAndACardShareALine) {
  const auto expected = Outputs({MustCreate(*MakeCpuBackend({}), Options()).get()});
  const auto first =
      MustCreate(*MakeCpuBackend({}), Options(), {0, 1, /*embeds=*/true, /*has_head=*/false});
  const auto second = MustCreate(std::make_unique<FakeCard>(*MakeCpuBackend({})), Options(),
                                 {1, 2, /*embeds=*/false, /*has_head=*/false});
  const auto third = MustCreate(std::make_unique<FakeCard>(*MakeCpuBackend({})), Options(),
                                {2, 3, /*embeds=*/false, /*has_head=*/true, /*drafts=*/true});
  EXPECT_TRUE(Outputs({first.get(), second.get(), third.get()}) == expected);
}

TEST_F(CardStageTest, ExpertsBeyondTheCardAddTheSame) {
  const auto expected = Outputs({MustCreate(*MakeCpuBackend({}), Options()).get()});
  for (const int card_slots : {4, 16, 40}) {
    for (const int host_slots : {4, 20, PackedToy::kAllExperts}) {
      SCOPED_TRACE(absl::StrCat(card_slots, " slots, ", host_slots, " in the host's memory"));
      Stage::Options options = Options();
      options.expert_budget_bytes = host_slots * toy_->run_bytes();
      options.card_expert_bytes = card_slots * (toy_->run_bytes() + 256);
      options.cpu = *MakeCpuBackend({});
      const auto stage = MustCreate(std::make_unique<FakeCard>(*MakeCpuBackend({})), options);
      const auto outputs = Outputs({stage.get()});
      ASSERT_EQ(outputs.size(), expected.size());
      // A few roundings of 2^-24 more on the way through three layers and a softmax.
      for (size_t i = 0; i < outputs.size(); ++i) {
        EXPECT_LE(RelativeError(outputs[i], expected[i]), 1e-5) << i;
      }
      const CardExperts::Counters counters = stage->card_experts()->counters();
      EXPECT_GT(counters.hits, 0);
      EXPECT_GT(counters.on_cpu + counters.copies, 0);
    }
  }
}

TEST_F(CardStageTest, OnlySummariesOfLogitsComeBackForWhatTheyDecide) {
  const auto host = MustCreate(*MakeCpuBackend({}), Options());
  auto backend = std::make_unique<FakeCard>(*MakeCpuBackend({}));
  FakeCardMemory& memory = backend->memory();
  const auto card = MustCreate(std::move(backend), Options());
  constexpr auto kSummary = static_cast<int64_t>(sizeof(LogitSummary));
  constexpr int64_t kRow = PackedToy::kVocab * static_cast<int64_t>(sizeof(float));
  /// Expects the host's results, and how many bytes came back.
  const auto expect = [&](const v1::Step& step, int64_t bytes) {
    const int64_t before = memory.copied_out_bytes();
    const v1::Step on_card = card->Run(step);
    EXPECT_FALSE(on_card.has_error()) << on_card.error().message();
    EXPECT_EQ(memory.copied_out_bytes() - before, bytes);
    EXPECT_EQ(on_card.DebugString(), host->Run(step).DebugString());
  };

  v1::Step step = MakeToyStep(0, 20, {0});
  v1::SequenceSlice& slice = *step.mutable_slices(0);
  slice.clear_next_token_id();
  slice.set_output(v1::SLICE_OUTPUT_SAMPLE);
  // The token, and the draft after it.
  v1::SamplingParams& sampling = *slice.mutable_sampling();
  expect(step, 2 * kSummary);
  sampling.set_num_alternatives(20);
  sampling.set_seed(4);
  for (const float temperature : {0.1f, 0.7f, 1.0f, 2.5f}) {
    sampling.set_temperature(temperature);
    expect(step, 2 * kSummary);
  }
  sampling.set_top_k(40);
  sampling.set_top_p(0.9f);
  expect(step, 2 * kSummary);
  slice.add_scored_token_ids(5);
  slice.add_scored_token_ids(511);
  expect(step, 4 * kSummary);
  slice.clear_scored_token_ids();
  // Two drafts: a row each, and the draft's own.
  slice.set_num_draft_tokens(2);
  expect(step, 4 * kSummary);
  slice.set_num_draft_tokens(0);
  // Of the random model's even logits, a nucleus is no short list; nor are the 200 likeliest.
  sampling.clear_top_k();
  expect(step, 2 * (kSummary + kRow));
  sampling.clear_top_p();
  sampling.set_top_k(200);
  expect(step, 2 * (kSummary + kRow));
  // More rows than the head takes at once.
  slice.set_output(v1::SLICE_OUTPUT_LOGITS);
  slice.set_draft(false);
  expect(step, 20 * (kSummary + kRow));
}

TEST_F(CardStageTest, WhatExpertsCostIsMeasuredOnceABox) {
  const TempDir dir;
  Stage::Options options = Options();
  options.expert_budget_bytes = 20 * toy_->run_bytes();
  options.card_expert_bytes = 16 * (toy_->run_bytes() + 256);
  options.cpu = *MakeCpuBackend({});
  options.expert_heat = dir.path();
  const auto costs_of_stage = [&] {
    const auto stage = MustCreate(std::make_unique<FakeCard>(*MakeCpuBackend({})), options);
    return stage->card_experts()->costs();
  };
  ExpertCosts costs = costs_of_stage();
  std::string path;
  std::string measured_for;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    if (!absl::StrContains(entry.path().string(), "expert-costs-")) continue;
    path = entry.path();
    measured_for = (*ReadJsonFile(path))["measured_for"];
  }
  ASSERT_FALSE(path.empty());
  // What nothing here would measure.
  costs.copy_seconds = 1234;
  ASSERT_TRUE(WriteExpertCosts(path, measured_for, costs).ok());
  EXPECT_EQ(costs_of_stage().copy_seconds, 1234);
  options.max_step_tokens = kMaxRows / 2;
  EXPECT_LT(costs_of_stage().copy_seconds, 1234);
}

TEST_F(CardStageTest, AStageOfOtherLayersNeedNotMeasureWhatExpertsCost) {
  const TempDir dir;
  Stage::Options options = Options();
  options.card_expert_bytes = 16 * (toy_->run_bytes() + 256);
  options.cpu = *MakeCpuBackend({});
  options.expert_heat = dir.path();
  const auto costs_of = [&](const StageSpec& spec, int slots) {
    options.expert_budget_bytes = slots * toy_->run_bytes();
    const auto stage = MustCreate(std::make_unique<FakeCard>(*MakeCpuBackend({})), options, spec);
    return stage->card_experts()->costs().copy_seconds;
  };
  // With all experts of a layer, in either.
  const double measured =
      costs_of({0, 2, /*embeds=*/true, /*has_head=*/false}, PackedToy::kExperts);
  EXPECT_EQ(costs_of({1, 3, /*embeds=*/false, /*has_head=*/true, /*drafts=*/true},
                     PackedToy::kAllExperts),
            measured);
}

TEST_F(CardStageTest, AStageThatIsStoppedInItsDryRunsLeavesItsExperts) {
  Stage::Options options = Options();
  options.expert_budget_bytes = 20 * toy_->run_bytes();
  options.card_expert_bytes = 16 * (toy_->run_bytes() + 256);
  options.cpu = *MakeCpuBackend({});
  options.held_experts = std::make_shared<HeldExperts>();
  // All is read by then; what asks so often are the dry runs.
  int told_of_the_end = 0;
  const auto stopped = Stage::Create(
      toy_->config(), toy_->whole(), toy_->model(), std::make_unique<FakeCard>(*MakeCpuBackend({})),
      options, [&](int64_t done, int64_t total) { return done < total || ++told_of_the_end < 10; });
  EXPECT_EQ(stopped.status().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(options.held_experts->experts.empty());
  EXPECT_EQ(options.held_experts->memory.size(), 20 * toy_->run_bytes());
}

TEST_F(CardStageTest, TakesNoMoreOfTheCardThanPlansCount) {
  // But for the scratch of CUDA's backend and the rounding of its driver, which this one has not,
  // and what only a stage takes whose experts are not all there.
  auto backend = std::make_unique<FakeCard>(*MakeCpuBackend({}));
  FakeCardMemory& memory = backend->memory();
  const auto stage = MustCreate(std::move(backend), Options());
  constexpr int64_t kBlockTokens = 64;
  const StepMemory steps = ComputeCardStepMemory(toy_->config(), kMaxRows, kBlockTokens);
  const int64_t scratch = CudaScratchBytes(CudaLimits(toy_->config(), kMaxRows, kBlockTokens));
  const int64_t kv = stage->kv_cache().num_blocks() * kBlockTokens * 4 *
                     toy_->config().Mla().kv_width() * static_cast<int64_t>(sizeof(float));
  constexpr int64_t kRounding = int64_t{96} << 20;
  EXPECT_EQ(memory.taken_bytes(), stage->weights().num_bytes() + kv + steps.Of(toy_->whole(), 1) -
                                      scratch - CardExpertBytes(toy_->config(), kMaxRows) -
                                      kRounding);
}

TEST_F(CardStageTest, ABudgetThatStepsUseUpIsRefusedByItsFlag) {
  Stage::Options options = Options();
  options.expert_budget_bytes = 1000;
  const int64_t steps = ComputeStepMemory(toy_->config(), kMaxRows).Of(toy_->whole(), 1);
  const std::shared_ptr<Backend> cpu = *MakeCpuBackend({});
  const absl::Status lacking =
      SplitExpertBudget(toy_->config(), toy_->whole(), steps, cpu, options);
  EXPECT_EQ(lacking.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(lacking.message()), HasSubstr("--ram: the experts"));
  ASSERT_TRUE(SplitExpertBudget(toy_->config(), toy_->whole(), steps + 5000, cpu, options).ok());
  EXPECT_EQ(options.card_expert_bytes, 1000);
  EXPECT_EQ(options.expert_budget_bytes, 5000);
  EXPECT_EQ(options.cpu, cpu);
}

TEST_F(CardStageTest, KvBlocksOnDiskBesideACardAreRefused) {
  Stage::Options options = Options();
  options.kv_disk_bytes = 1 << 20;
  const auto stage =
      Create(std::make_unique<FakeCard>(*MakeCpuBackend({})), options, toy_->whole());
  EXPECT_EQ(stage.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(stage.status().message()), HasSubstr("--kv-disk"));
}

TEST_F(CardStageTest, ACardThatIsTooSmallIsSaidSo) {
  const auto stage =
      Create(std::make_unique<FakeCard>(*MakeCpuBackend({}), 1 << 20), Options(), toy_->whole());
  EXPECT_EQ(stage.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(stage.status().message(), HasSubstr("the card has no"));
}

}  // namespace
}  // namespace caravan
