// A stage whose routed experts stay on disk computes what one with all of them in memory does, to
// the bit.

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/worker/experts/expert_testing.h"
#include "worker/stage.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// 600 rows are more than kMaxUnorderedShares.
constexpr int kMaxRows = 600;

class OffloadedStageTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { toy_ = new PackedToy; }
  static void TearDownTestSuite() { delete toy_; }

  absl::StatusOr<std::unique_ptr<Stage>> Create(int slots, int threads, const StageSpec& spec,
                                                const StageWeights::Progress& progress) {
    Stage::Options options;
    options.name = "worker 2 (box-b)";
    options.kv_budget_bytes = 16 << 20;
    options.max_step_tokens = kMaxRows;
    options.expert_budget_bytes = slots * toy_->run_bytes();
    options.expert_heat = heat_;
    options.experts.guesses = guesses_;
    options.experts.make_queue =
        [this](const ReadQueue::Options& reads) -> absl::StatusOr<std::unique_ptr<ReadQueue>> {
      absl::StatusOr<std::unique_ptr<ReadQueue>> queue = ReadQueue::Create(reads);
      if (!queue.ok()) return queue.status();
      return std::make_unique<UnrulyQueue>(*std::move(queue), 1, fault_);
    };
    return Stage::Create(toy_->config(), spec, toy_->model(),
                         *MakeCpuBackend({.num_threads = threads}), options, progress);
  }
  std::unique_ptr<Stage> MustCreate(int slots, int threads = 2) {
    auto stage = Create(slots, threads, toy_->whole(), [](int64_t, int64_t) { return true; });
    CARAVAN_CHECK(stage.ok());
    return *std::move(stage);
  }

  static v1::Step MakeStep(int first_position, int rows) {
    return MakeToyStep(first_position, rows, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  }

  /// What a prompt, in one chunk and then some tokens one by one and by fours, ends with.
  static std::vector<std::string> Outputs(Stage& stage, int prompt_rows) {
    std::vector<std::string> outputs;
    int position = 0;
    for (const int rows : {prompt_rows, 1, 4, 1, 30, 1}) {
      const v1::Step step = stage.Run(MakeStep(position, rows));
      EXPECT_FALSE(step.has_error()) << step.error().message();
      if (step.has_error()) return {};
      outputs.push_back(step.results(0).logits());
      outputs.push_back(step.results(0).mtp_logits());
      position += rows;
    }
    return outputs;
  }

  static PackedToy* toy_;
  std::optional<std::string> heat_;
  ExpertStore::Guesses guesses_ = ExpertStore::Guesses::kAlways;
  UnrulyQueue::Fault fault_;
};

PackedToy* OffloadedStageTest::toy_ = nullptr;

TEST_F(OffloadedStageTest, GivesTheSameBitsWithAnyNumberOfSlots) {
  constexpr int kPrompt = 40;
  const std::vector<std::string> expected = Outputs(*MustCreate(0), kPrompt);
  EXPECT_GT(std::set<std::string>(expected.begin(), expected.end()).size(), 10u);
  for (int slots = PackedToy::kChosen; slots <= PackedToy::kAllExperts; ++slots) {
    const std::unique_ptr<Stage> stage = MustCreate(slots);
    ASSERT_NE(stage->experts(), nullptr);
    EXPECT_EQ(stage->experts()->num_slots(), slots);
    EXPECT_TRUE(Outputs(*stage, kPrompt) == expected) << slots << " slots";
    if (slots < PackedToy::kAllExperts) {
      EXPECT_GT(stage->experts()->counters().misses, 0);
    } else {
      EXPECT_EQ(stage->experts()->counters().misses, 0);
    }
  }
}

TEST_F(OffloadedStageTest, GivesTheSameBitsWhetherItGuessesOrNot) {
  const std::vector<std::string> expected = Outputs(*MustCreate(0), 8);
  for (const auto guesses : {ExpertStore::Guesses::kNever, ExpertStore::Guesses::kWhereTheyPay,
                             ExpertStore::Guesses::kAlways}) {
    guesses_ = guesses;
    for (const int slots : {8, 20}) {
      const std::unique_ptr<Stage> stage = MustCreate(slots);
      EXPECT_TRUE(Outputs(*stage, 8) == expected) << slots << " slots";
    }
  }
}

TEST_F(OffloadedStageTest, GuessesOfTheNextLayersExpertsMostlyComeTrue) {
  const std::unique_ptr<Stage> stage = MustCreate(24);
  // Steps of one row: no scan that knows what comes, but for the prompt.
  ASSERT_FALSE(stage->Run(MakeStep(0, 16)).has_error());
  const ExpertStore::Counters before = stage->experts()->counters();
  for (int position = 16; position < 80; ++position) {
    ASSERT_FALSE(stage->Run(MakeStep(position, 1)).has_error());
  }
  const ExpertStore::Counters counters = stage->experts()->counters();
  const int64_t used = counters.guesses_used - before.guesses_used;
  EXPECT_GT(counters.guesses - before.guesses, 64);
  // By chance it would be a quarter.
  EXPECT_GT(2 * used, counters.guesses - before.guesses) << used;
  EXPECT_GT(2 * used, counters.guessable - before.guessable) << used;
}

TEST_F(OffloadedStageTest, GivesTheSameBitsOnAnyThreadsOfManyRows) {
  const std::vector<std::string> expected = Outputs(*MustCreate(0, 1), kMaxRows);
  for (const int threads : {1, 2, 3}) {
    for (const int slots : {4, 5, 11, 24, 47, 48}) {
      EXPECT_TRUE(Outputs(*MustCreate(slots, threads), kMaxRows) == expected)
          << slots << " slots, " << threads << " threads";
    }
  }
}

TEST_F(OffloadedStageTest, OtherFormatsToo) {
  PackedToy* const first = std::exchange(toy_, nullptr);
  for (const PackTypes& types : {PackTypes{}, PackTypes{DType::kBF16, DType::kBF16}}) {
    const PackedToy toy(types);  // FP8 with its scales first
    toy_ = const_cast<PackedToy*>(&toy);
    const std::vector<std::string> expected = Outputs(*MustCreate(0), 40);
    for (const int slots : {4, 20}) EXPECT_TRUE(Outputs(*MustCreate(slots), 40) == expected);
  }
  toy_ = first;
}

TEST_F(OffloadedStageTest, AStepThatTheDiskFailsLeavesLaterOnes) {
  const std::unique_ptr<Stage> resident = MustCreate(0);
  bool broken = false;
  fault_ = [&broken](const FileRead& /*read*/) {
    return broken ? absl::DataLossError("the disk says no") : absl::OkStatus();
  };
  for (const int slots : {4, 12, 40}) {
    const std::unique_ptr<Stage> stage = MustCreate(slots);
    const v1::Step expected = resident->Run(MakeStep(0, 64));
    broken = true;
    const v1::Step failed = stage->Run(MakeStep(0, 64));
    EXPECT_EQ(failed.error().code(), static_cast<int>(absl::StatusCode::kDataLoss));
    EXPECT_THAT(failed.error().message(),
                AllOf(HasSubstr("worker 2 (box-b), layers 0..2"), HasSubstr("layer 1, expert "),
                      HasSubstr(toy_->PathOf(1)), HasSubstr("the disk says no")));
    EXPECT_EQ(failed.results_size(), 0);
    broken = false;
    const v1::Step step = stage->Run(MakeStep(0, 64));
    ASSERT_FALSE(step.has_error()) << step.error().message();
    EXPECT_TRUE(step.results(0).logits() == expected.results(0).logits());
    EXPECT_TRUE(step.results(0).mtp_logits() == expected.results(0).mtp_logits());
  }
}

TEST_F(OffloadedStageTest, LoadingTellsOfAllBytesAndMayBeStopped) {
  int64_t last = 0;
  int64_t all = 0;
  const auto stage =
      Create(PackedToy::kAllExperts, 1, toy_->whole(), [&](int64_t done, int64_t of) {
        EXPECT_GE(done, last);
        last = done;
        EXPECT_TRUE(all == 0 || all == of);
        all = of;
        return true;
      });
  ASSERT_TRUE(stage.ok()) << stage.status();
  EXPECT_EQ(last, all);
  EXPECT_EQ(all, (*stage)->weights().num_bytes() + PackedToy::kAllExperts * toy_->run_bytes());
  const int64_t weights = (*stage)->weights().num_bytes();
  EXPECT_LT(weights, MustCreate(0)->weights().num_bytes());
  const auto stopped = Create(PackedToy::kAllExperts, 1, toy_->whole(),
                              [&](int64_t done, int64_t) { return done <= weights; });
  EXPECT_EQ(stopped.status().code(), absl::StatusCode::kCancelled);
}

TEST_F(OffloadedStageTest, ASecondRunBeginsWithWhatTheFirstLearned) {
  guesses_ = ExpertStore::Guesses::kNever;  // they hit too
  constexpr int kPrompt = 8;                // touches less than all
  const std::vector<std::string> expected = Outputs(*MustCreate(0), kPrompt);
  for (const int slots : {12, 24, 40}) {
    const TempDir dir;
    heat_ = dir.path();
    const std::unique_ptr<Stage> first = MustCreate(slots);
    ASSERT_EQ(first->experts()->counters().reads, 0);
    EXPECT_TRUE(Outputs(*first, kPrompt) == expected);
    first->Finish();

    int64_t last = 0;
    int64_t all = 0;
    const auto second = Create(slots, 2, toy_->whole(), [&](int64_t done, int64_t of) {
      last = done;
      all = of;
      return true;
    });
    ASSERT_TRUE(second.ok()) << second.status();
    const int cached = (*second)->experts()->num_slots() -
                       std::clamp((*second)->experts()->num_slots() / 4, 1, 32);
    const int64_t warm = (*second)->experts()->counters().reads;
    EXPECT_GT(warm, 0);
    EXPECT_LE(warm, cached);
    EXPECT_EQ(last, all);
    EXPECT_EQ(all, (*second)->weights().num_bytes() + warm * toy_->run_bytes());

    // A step of one row, before which one that knows nothing has nothing.
    heat_.reset();
    const std::unique_ptr<Stage> cold = MustCreate(slots);
    const v1::Step step = cold->Run(MakeStep(0, 1));
    EXPECT_EQ(cold->experts()->counters().hits, 0);
    const v1::Step same = (*second)->Run(MakeStep(0, 1));
    EXPECT_GT((*second)->experts()->counters().hits, 0) << slots;
    EXPECT_TRUE(same.results(0).logits() == step.results(0).logits());
    EXPECT_TRUE(same.results(0).mtp_logits() == step.results(0).mtp_logits());
    EXPECT_TRUE(Outputs(**second, kPrompt) == expected) << slots;
  }
}

TEST_F(OffloadedStageTest, WhatItLearnsLiesBesideTheExperts) {
  heat_ = "";
  const std::filesystem::path path =
      std::filesystem::path(toy_->PathOf(1)).parent_path() / "expert-heat-1-4.json";
  MustCreate(24);  // never ran
  EXPECT_FALSE(std::filesystem::exists(path));
  const std::unique_ptr<Stage> stage = MustCreate(24);
  stage->Run(MakeStep(0, 1));
  EXPECT_FALSE(std::filesystem::exists(path));
  stage->Finish();
  EXPECT_TRUE(std::filesystem::remove(path));
}

TEST_F(OffloadedStageTest, AHeatFileThatCannotBeWrittenIsAWarning) {
  const TempDir dir;
  heat_ = dir.File("none");
  testing::internal::CaptureStderr();
  const std::unique_ptr<Stage> stage = MustCreate(24);
  EXPECT_FALSE(stage->Run(MakeStep(0, 1)).has_error());
  stage->Finish();
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("expert_heat_not_kept"), HasSubstr(dir.File("none"))));
}

TEST_F(OffloadedStageTest, AStageWithoutExpertsNeedsNoSlots) {
  const auto dense =
      Create(1, 1, {0, 1, true, false, false}, [](int64_t, int64_t) { return true; });
  ASSERT_TRUE(dense.ok()) << dense.status();
  EXPECT_EQ((*dense)->experts(), nullptr);
  const auto refused =
      Create(1, 1, {1, 2, false, false, false}, [](int64_t, int64_t) { return true; });
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace caravan
