// Plans by memory of random models and workers, against every split, tried one by one.

#include <algorithm>
#include <limits>
#include <random>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/planner.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cluster/planner_testing.h"

namespace caravan {
namespace {

struct Score {
  double largest = std::numeric_limits<double>::infinity();
  double squares = 0;
  std::vector<int> ends;
};

/// Whether the stage fits the worker, by the header's words.
bool Fits(const LayerCost& stage, const PlannerWorker& worker, const PlannerOptions& options,
          const StageSpec& spec, int num_stages, bool may_offload) {
  const int64_t kv = stage.kv_values_per_token * options.context_tokens;  // a byte a value
  if (stage.weight_bytes + kv <= worker.memory_budget_bytes) return true;
  if (!may_offload || !worker.offloads || stage.expert_slot_bytes == 0) return false;
  return stage.weight_bytes - stage.expert_bytes + kv +
             stage.experts_per_token * stage.expert_slot_bytes + worker.process_bytes +
             options.step_memory.Of(spec, num_stages) <=
         worker.memory_budget_bytes;
}

/// Extends `ends` to every split of the layers over the workers; keeps the best in `best`.
void TrySplits(const ModelCost& cost, const std::vector<PlannerWorker>& workers,
               const PlannerOptions& options, bool may_offload, std::vector<int>& ends,
               Score& best) {
  const int num_layers = static_cast<int>(cost.layers.size());
  const int begin = ends.empty() ? 0 : ends.back();
  if (ends.size() < workers.size()) {
    for (int end = begin + 1; end <= num_layers; ++end) {
      ends.push_back(end);
      TrySplits(cost, workers, options, may_offload, ends, best);
      ends.pop_back();
    }
    return;
  }
  if (begin != num_layers) return;
  Score score{0, 0, ends};
  for (size_t w = 0; w < workers.size(); ++w) {
    const StageSpec spec = {w == 0 ? 0 : ends[w - 1], ends[w], w == 0, ends[w] == num_layers};
    const LayerCost stage = cost.Of(spec);
    if (!Fits(stage, workers[w], options, spec, static_cast<int>(workers.size()), may_offload)) {
      return;
    }
    const double share = static_cast<double>(stage.weight_bytes) / workers[w].memory_budget_bytes;
    score.largest = std::max(score.largest, share);
    score.squares += share * share;
  }
  if (std::tie(score.largest, score.squares) < std::tie(best.largest, best.squares)) best = score;
}

Score BestOfAllSplits(const ModelCost& cost, const std::vector<PlannerWorker>& workers,
                      const PlannerOptions& options, bool may_offload) {
  Score best;
  std::vector<int> ends;
  TrySplits(cost, workers, options, may_offload, ends, best);
  return best;
}

std::vector<int> Ends(const PipelinePlan& plan) {
  std::vector<int> ends;
  for (const StagePlan& stage : plan.stages) ends.push_back(stage.stage.end_layer);
  return ends;
}

TEST(PlannedSplitsTest, FindsTheBestOfAllSplits) {
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
    const PlannerOptions options = {.context_tokens = draw(0, 4)};

    const Score best = BestOfAllSplits(cost, workers, options, /*may_offload=*/false);
    const auto plan = PlanStages(cost, workers, options);
    if (best.ends.empty()) {
      // It may still have found one without the smallest workers.
      EXPECT_TRUE(!plan.ok() || plan->stages.size() < workers.size());
      continue;
    }
    ++num_feasible;
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(Ends(*plan), best.ends);
  }
  EXPECT_GT(num_feasible, 500);
}

TEST(PlannedSplitsTest, FindsTheBestOfAllSplitsWhereExpertsMayStayOnDisks) {
  constexpr uint32_t kSeed = 20251127;
  std::mt19937 random(kSeed);
  const auto draw = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  int num_resident = 0;
  int num_offloading = 0;
  int num_mixed = 0;  // with stages of both kinds
  for (int round = 0; round < 6000; ++round) {
    SCOPED_TRACE(absl::StrCat("seed ", kSeed, ", round ", round));
    ModelCost cost;
    cost.embedding.weight_bytes = draw(0, 10);
    cost.head.weight_bytes = draw(0, 10);
    const int num_layers = draw(1, 8);
    for (int i = 0; i < num_layers; ++i) {
      LayerCost& layer = cost.layers.emplace_back();
      layer.weight_bytes = draw(1, 5);
      layer.kv_values_per_token = draw(0, 2);
      if (draw(0, 3) == 0) continue;  // dense
      layer.num_experts = 4;
      layer.experts_per_token = 2;
      const int expert = draw(1, 8);
      layer.expert_bytes = 4 * expert;
      layer.weight_bytes += layer.expert_bytes;
      layer.expert_slot_bytes = draw(0, 20) == 0 ? 0 : expert + draw(0, 1);
    }
    std::vector<int64_t> budgets;
    const int num_workers = draw(1, std::min(4, num_layers));
    for (int i = 0; i < num_workers; ++i) budgets.push_back(int64_t{32} << draw(0, 2));
    std::vector<PlannerWorker> workers = MakeOffloadingWorkers(budgets, draw(0, 3));
    for (PlannerWorker& worker : workers) worker.offloads = draw(0, 3) > 0;
    const PlannerOptions options = {
        .context_tokens = draw(0, 2),
        .kv_tokens = draw(0, 20),
        .step_memory = {.layers = draw(0, 3), .head = draw(0, 2), .activations = draw(0, 1)}};

    const auto plan = PlanStages(cost, workers, options);
    const Score resident = BestOfAllSplits(cost, workers, options, /*may_offload=*/false);
    const Score offloading = BestOfAllSplits(cost, workers, options, /*may_offload=*/true);
    if (!plan.ok()) {
      EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
      EXPECT_TRUE(offloading.ends.empty());
      continue;
    }
    int stages_that_offload = 0;
    for (const StagePlan& stage : plan->stages) {
      const LayerCost of_stage = cost.Of(stage.stage);
      const PlannerWorker& worker = workers[Number(stage.worker) - 1];
      EXPECT_GE(stage.kv_bytes, of_stage.kv_values_per_token * options.context_tokens);
      if (stage.expert_bytes == 0) {
        EXPECT_LE(stage.weight_bytes + stage.kv_bytes, worker.memory_budget_bytes);
        continue;
      }
      ++stages_that_offload;
      EXPECT_TRUE(worker.offloads);
      EXPECT_EQ(stage.expert_bytes % of_stage.expert_slot_bytes, 0);
      EXPECT_GE(stage.expert_bytes, 2 * of_stage.expert_slot_bytes);
      EXPECT_LE(of_stage.always_active_bytes() + stage.kv_bytes + stage.expert_bytes +
                    worker.process_bytes +
                    options.step_memory.Of(stage.stage, static_cast<int>(plan->stages.size())),
                worker.memory_budget_bytes);
    }
    if (!resident.ends.empty()) {
      ++num_resident;
      EXPECT_EQ(Ends(*plan), resident.ends);
      EXPECT_EQ(stages_that_offload, 0);
    } else if (plan->stages.size() == workers.size()) {
      ++num_offloading;
      EXPECT_EQ(Ends(*plan), offloading.ends);
      EXPECT_GT(stages_that_offload, 0);
      num_mixed += stages_that_offload < std::ssize(plan->stages);
    }
  }
  EXPECT_GT(num_resident, 500);
  EXPECT_GT(num_offloading, 500);
  EXPECT_GT(num_mixed, 100);
}

TEST(PlannedSplitsTest, EveryPlanIsWhole) {
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
