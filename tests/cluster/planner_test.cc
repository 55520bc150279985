#include "cluster/planner.h"

#include <algorithm>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kMiB = 1 << 20;

ModelCost MakeCost(const std::vector<int64_t>& layer_bytes, int64_t kv_values_per_token = 0,
                   int64_t embedding_bytes = 0, int64_t head_bytes = 0) {
  ModelCost cost;
  cost.embedding.weight_bytes = embedding_bytes;
  cost.head.weight_bytes = head_bytes;
  for (const int64_t bytes : layer_bytes) {
    LayerCost layer;
    layer.weight_bytes = bytes;
    layer.kv_values_per_token = kv_values_per_token;
    cost.layers.push_back(layer);
  }
  return cost;
}

/// Whose KV caches take a byte a value.
std::vector<PlannerWorker> MakeWorkers(const std::vector<int64_t>& budgets) {
  std::vector<PlannerWorker> workers;
  for (size_t i = 0; i < budgets.size(); ++i) {
    workers.push_back({WorkerId{static_cast<uint32_t>(i + 1)}, absl::StrCat("box", i), budgets[i],
                       DType::kF8E4M3});
  }
  return workers;
}

/// The worker and the end of each stage.
std::vector<std::pair<uint32_t, int>> Split(const PipelinePlan& plan) {
  std::vector<std::pair<uint32_t, int>> split;
  for (const StagePlan& stage : plan.stages) {
    split.emplace_back(Number(stage.worker), stage.stage.end_layer);
  }
  return split;
}

using Stage = std::pair<uint32_t, int>;

TEST(PlannerTest, GivesOneWorkerTheWholeModel) {
  const auto plan = PlanStages(MakeCost({10, 10, 10}, 2, 5, 7), MakeWorkers({1000}),
                               {.version = 4, .context_tokens = 8, .kv_tokens = 20});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->version, 4u);
  ASSERT_EQ(plan->stages.size(), 1u);
  EXPECT_EQ(plan->stages[0].stage, (StageSpec{0, 3, true, true}));
  EXPECT_EQ(plan->stages[0].weight_bytes, 42);
  EXPECT_EQ(plan->stages[0].kv_bytes, 3 * 2 * 20);
}

TEST(PlannerTest, CountsTheEmbeddingFirstAndTheHeadLast) {
  const auto plan = PlanStages(MakeCost({10, 10, 10, 10}, 0, 20, 10), MakeWorkers({100, 100}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  // 20 + 10 and 30 + 10: the embedding weighs as two layers.
  EXPECT_THAT(Split(*plan), ElementsAre(Stage{1, 1}, Stage{2, 4}));
  EXPECT_EQ(plan->stages[0].stage, (StageSpec{0, 1, true, false}));
  EXPECT_EQ(plan->stages[1].stage, (StageSpec{1, 4, false, true}));
  EXPECT_EQ(plan->stages[0].weight_bytes, 30);
  EXPECT_EQ(plan->stages[1].weight_bytes, 40);
}

TEST(PlannerTest, CountsMultiTokenPredictionOnTheLastStage) {
  ModelCost cost = MakeCost({10, 10, 10, 10, 10, 10}, 2, 20, 10);
  cost.mtp.emplace();
  cost.mtp->weight_bytes = 15;
  cost.mtp->kv_values_per_token = 2;
  const auto plan =
      PlanStages(cost, MakeWorkers({1000, 1000}), {.context_tokens = 8, .kv_tokens = 10});
  ASSERT_TRUE(plan.ok()) << plan.status();
  // 20 + 40 and 20 + 20 + 10 + 15: the last stage needs the embedding for its drafts.
  EXPECT_THAT(Split(*plan), ElementsAre(Stage{1, 4}, Stage{2, 6}));
  EXPECT_EQ(plan->stages[0].stage, (StageSpec{0, 4, true, false, false}));
  EXPECT_EQ(plan->stages[1].stage, (StageSpec{4, 6, false, true, true}));
  EXPECT_EQ(plan->stages[1].weight_bytes, 65);
  EXPECT_EQ(plan->stages[0].kv_bytes, 4 * 2 * 10);
  EXPECT_EQ(plan->stages[1].kv_bytes, 3 * 2 * 10);
  // On one worker the embedding is there already.
  const auto alone = PlanStages(cost, MakeWorkers({1000}), {});
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->stages[0].stage, (StageSpec{0, 6, true, true, true}));
  EXPECT_EQ(alone->stages[0].weight_bytes, 105);
}

TEST(PlannerTest, GivesTwiceTheMemoryTwiceTheBytes) {
  const auto plan =
      PlanStages(MakeCost(std::vector<int64_t>(12, 10)), MakeWorkers({200, 100, 300}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(Split(*plan), ElementsAre(Stage{1, 4}, Stage{2, 6}, Stage{3, 12}));
}

TEST(PlannerTest, BalancesWhatIsNotAtTheLargestShare) {
  // The head keeps the last worker at its limit whatever the others do: they share evenly.
  const auto plan =
      PlanStages(MakeCost(std::vector<int64_t>(7, 10), 0, 0, 90), MakeWorkers({100, 100, 100}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(Split(*plan), ElementsAre(Stage{1, 3}, Stage{2, 6}, Stage{3, 7}));
}

TEST(PlannerTest, EndsTheFirstStageEarlierWhenSplitsAreEqual) {
  const auto plan = PlanStages(MakeCost({10, 10, 10}), MakeWorkers({100, 100}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(Split(*plan), ElementsAre(Stage{1, 1}, Stage{2, 3}));
}

TEST(PlannerTest, KeepsTheLastWorkersSpareWhenLayersRunOut) {
  const auto plan = PlanStages(MakeCost({10, 10}), MakeWorkers({100, 100, 500}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(Split(*plan), ElementsAre(Stage{1, 1}, Stage{2, 2}));
}

TEST(PlannerTest, CallsASpareWhenAnEarlierWorkerIsTooSmall) {
  const auto plan = PlanStages(MakeCost({10, 10}), MakeWorkers({100, 5, 100}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(Split(*plan), ElementsAre(Stage{1, 1}, Stage{3, 2}));
}

TEST(PlannerTest, LeavesOutAWorkerThatIsTooSmallForALayer) {
  const auto plan = PlanStages(MakeCost({10, 10, 10, 10}), MakeWorkers({9, 25, 8, 25}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(Split(*plan), ElementsAre(Stage{2, 2}, Stage{4, 4}));
}

TEST(PlannerTest, GivesTheKvCacheWhatTheBudgetLeavesUpToWhatIsWanted) {
  const auto plan = PlanStages(MakeCost({10, 10}, 1), MakeWorkers({40, 60}),
                               {.context_tokens = 20, .kv_tokens = 45});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->stages[0].kv_bytes, 30);  // 40 - 10
  EXPECT_EQ(plan->stages[1].kv_bytes, 45);
}

TEST(PlannerTest, CountsAKvCacheInTheFormatOfItsWorker) {
  std::vector<PlannerWorker> workers = MakeWorkers({5000, 5000, 5000});
  workers[0].kv_dtype = DType::kF32;
  workers[1].kv_dtype = DType::kF16;
  workers[2].kv_dtype = DType::kQ8_0;
  const auto plan =
      PlanStages(MakeCost({10, 10, 10}, 64), workers, {.context_tokens = 4, .kv_tokens = 12});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->stages[0].kv_bytes, 12 * 256);
  EXPECT_EQ(plan->stages[1].kv_bytes, 12 * 128);
  EXPECT_EQ(plan->stages[2].kv_bytes, 12 * 68);
  // What is missing is counted in the smallest format.
  const auto too_large =
      PlanStages(MakeCost({10, 10, 10}, 64), workers, {.context_tokens = 100000});
  EXPECT_THAT(too_large.status().message(), HasSubstr("19.5 MiB for the KV cache"));
}

TEST(PlannerTest, MovesALayerWhereItsKvCacheFits) {
  // By weights alone two layers each; but then the first worker could not hold two layers' cache.
  const ModelCost cost = MakeCost({10, 10, 10, 10}, 1);
  const auto plan = PlanStages(cost, MakeWorkers({100, 150}), {.context_tokens = 45});
  ASSERT_FALSE(plan.ok());  // 3 * 55 does not fit 150, nor 2 * 55 fit 100
  const auto roomier = PlanStages(cost, MakeWorkers({100, 165}), {.context_tokens = 45});
  ASSERT_TRUE(roomier.ok()) << roomier.status();
  EXPECT_THAT(Split(*roomier), ElementsAre(Stage{1, 1}, Stage{2, 4}));
}

TEST(PlannerTest, SaysWhatTheModelNeedsAndWhatIsOffered) {
  const ModelCost cost = MakeCost({4 * kMiB, 4 * kMiB, 4 * kMiB}, 256, 2 * kMiB, 2 * kMiB);
  const auto plan = PlanStages(cost, MakeWorkers({6 * kMiB, 6 * kMiB}), {.context_tokens = 4096});
  EXPECT_EQ(plan.status(),
            absl::FailedPreconditionError(
                "the model needs 16.0 MiB for weights and 3.00 MiB for the KV cache of 4096 "
                "tokens, but the 2 workers offer 12.0 MiB"));
}

TEST(PlannerTest, NamesThePartThatFitsNoWorker) {
  const ModelCost cost = MakeCost({kMiB, 4 * kMiB, kMiB}, 256);
  const auto plan =
      PlanStages(cost, MakeWorkers({4 * kMiB, 4 * kMiB + 1, 4 * kMiB}), {.context_tokens = 4096});
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(plan.status().message()),
              HasSubstr("the 3 workers offer 12.0 MiB, but layers 1..1 alone needs 5.00 MiB and "
                        "the largest worker, box1, has 4.00 MiB"));
}

TEST(PlannerTest, SaysWhenOnlyTheSplitFails) {
  const auto plan = PlanStages(MakeCost({60, 60, 60}), MakeWorkers({90, 90}), {});
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("no split into whole layers"));
}

TEST(PlannerTest, RefusesWhatCannotBePlanned) {
  const ModelCost cost = MakeCost({10});
  EXPECT_EQ(PlanStages(cost, {}, {}).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(PlanStages(ModelCost(), MakeWorkers({9}), {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PlanStages(cost, MakeWorkers({0}), {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  for (const int64_t tokens : {int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    EXPECT_EQ(PlanStages(cost, MakeWorkers({9}), {.context_tokens = tokens}).status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(PlanStages(cost, MakeWorkers({9}), {.kv_tokens = tokens}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

// -- Against every split, tried one by one.

struct Score {
  double largest = std::numeric_limits<double>::infinity();
  double squares = 0;
  std::vector<int> ends;
};

/// Extends `ends` to every split of the layers over the workers; keeps the best in `best`.
void TrySplits(const ModelCost& cost, const std::vector<PlannerWorker>& workers,
               int64_t context_tokens, std::vector<int>& ends, Score& best) {
  const int num_layers = static_cast<int>(cost.layers.size());
  const int begin = ends.empty() ? 0 : ends.back();
  if (ends.size() < workers.size()) {
    for (int end = begin + 1; end <= num_layers; ++end) {
      ends.push_back(end);
      TrySplits(cost, workers, context_tokens, ends, best);
      ends.pop_back();
    }
    return;
  }
  if (begin != num_layers) return;
  Score score{0, 0, ends};
  for (size_t w = 0; w < workers.size(); ++w) {
    int64_t weights = 0;
    int64_t kv = 0;
    for (int layer = w == 0 ? 0 : ends[w - 1]; layer < ends[w]; ++layer) {
      weights += cost.layers[layer].weight_bytes;
      kv += cost.layers[layer].kv_values_per_token * context_tokens;
      if (layer == 0) weights += cost.embedding.weight_bytes;
      if (layer == num_layers - 1) weights += cost.head.weight_bytes;
    }
    if (weights + kv > workers[w].memory_budget_bytes) return;
    const double share = static_cast<double>(weights) / workers[w].memory_budget_bytes;
    score.largest = std::max(score.largest, share);
    score.squares += share * share;
  }
  if (std::tie(score.largest, score.squares) < std::tie(best.largest, best.squares)) best = score;
}

TEST(PlannerTest, FindsTheBestOfAllSplits) {
  constexpr uint32_t kSeed = 20240611;
  std::mt19937 random(kSeed);
  const auto draw = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  int num_feasible = 0;
  for (int round = 0; round < 2000; ++round) {
    SCOPED_TRACE(absl::StrCat("seed ", kSeed, ", round ", round));
    const int num_layers = draw(1, 8);
    std::vector<int64_t> layer_bytes;
    for (int i = 0; i < num_layers; ++i) layer_bytes.push_back(draw(1, 20));
    ModelCost cost = MakeCost(layer_bytes, 0, draw(0, 20), draw(0, 20));
    for (LayerCost& layer : cost.layers) layer.kv_values_per_token = draw(0, 3);
    std::vector<int64_t> budgets;
    const int num_workers = draw(1, std::min(4, num_layers));
    // A power of two, so that shares and their squares are exact and ties are true ties.
    for (int i = 0; i < num_workers; ++i) budgets.push_back(int64_t{32} << draw(0, 2));
    const std::vector<PlannerWorker> workers = MakeWorkers(budgets);
    const int64_t context_tokens = draw(0, 4);

    Score best;
    std::vector<int> ends;
    TrySplits(cost, workers, context_tokens, ends, best);
    const auto plan = PlanStages(cost, workers, {.context_tokens = context_tokens});
    if (best.ends.empty()) {
      // It may still have found one without the smallest workers.
      EXPECT_TRUE(!plan.ok() || plan->stages.size() < workers.size());
      continue;
    }
    ++num_feasible;
    ASSERT_TRUE(plan.ok()) << plan.status();
    std::vector<int> planned;
    for (const StagePlan& stage : plan->stages) planned.push_back(stage.stage.end_layer);
    EXPECT_EQ(planned, best.ends);
  }
  EXPECT_GT(num_feasible, 500);
}

TEST(PlannerTest, EveryPlanIsWhole) {
  constexpr uint32_t kSeed = 7;
  std::mt19937 random(kSeed);
  const auto draw = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  int num_planned = 0;
  for (int round = 0; round < 500; ++round) {
    SCOPED_TRACE(absl::StrCat("seed ", kSeed, ", round ", round));
    std::vector<int64_t> layer_bytes;
    for (int i = draw(1, 20); i > 0; --i) layer_bytes.push_back(draw(1, 20));
    const ModelCost cost = MakeCost(layer_bytes, draw(0, 2), draw(0, 20), draw(0, 20));
    std::vector<int64_t> budgets;
    for (int i = draw(1, 25); i > 0; --i) budgets.push_back(draw(1, 120));
    const auto workers = MakeWorkers(budgets);
    const int64_t context_tokens = draw(0, 10);
    const auto plan =
        PlanStages(cost, workers, {.context_tokens = context_tokens, .kv_tokens = draw(0, 20)});
    if (!plan.ok()) {
      EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
      continue;
    }
    ++num_planned;
    int next_layer = 0;
    uint32_t last_worker = 0;
    for (const StagePlan& stage : plan->stages) {
      EXPECT_EQ(stage.stage.first_layer, next_layer);
      EXPECT_GE(stage.stage.num_layers(), 1);
      EXPECT_EQ(stage.stage.embeds, next_layer == 0);
      next_layer = stage.stage.end_layer;
      EXPECT_EQ(stage.stage.has_head, next_layer == static_cast<int>(layer_bytes.size()));
      EXPECT_GT(Number(stage.worker), last_worker);
      last_worker = Number(stage.worker);
      EXPECT_LE(stage.weight_bytes + stage.kv_bytes, budgets[last_worker - 1]);
      EXPECT_GE(stage.kv_bytes,
                context_tokens * cost.layers[0].kv_values_per_token * stage.stage.num_layers());
    }
    EXPECT_EQ(next_layer, static_cast<int>(layer_bytes.size()));
  }
  EXPECT_GT(num_planned, 100);
}

}  // namespace
}  // namespace caravan
