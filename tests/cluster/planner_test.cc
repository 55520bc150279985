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

TEST(PlannerTest, GivesTheKvCacheAsMuchDiskAsItMakesUseOf) {
  // Layers of 64 values a token: a block's layer is a page of 4 KiB.
  const ModelCost cost = MakeCost(std::vector<int64_t>(8, 1000), 64);
  const int64_t block = 8 * 4096;
  std::vector<PlannerWorker> workers = MakeWorkers({8 * 1000 + 10 * block});
  workers[0].kv_disk_bytes = int64_t{1} << 40;
  const auto kv_disk = [&](int64_t kv_tokens) {
    const auto plan = PlanStages(cost, workers, {.context_tokens = 64, .kv_tokens = kv_tokens});
    EXPECT_TRUE(plan.ok()) << plan.status();
    return plan->stages[0].kv_disk_bytes;
  };
  EXPECT_EQ(kv_disk(64 * 10), 0);
  // Each of them takes a quarter of a block's memory, so 4 of memory make 16 on disk.
  EXPECT_EQ(kv_disk(64 * 22), 16 * block);
  EXPECT_EQ(kv_disk(64 * 21 + 1), 16 * block);
  EXPECT_EQ(kv_disk(64 * 1000), 40 * block);
  // Of five, the last would take the place of one in memory.
  workers[0].kv_disk_bytes = 5 * block;
  EXPECT_EQ(kv_disk(64 * 22), 4 * block);
}

TEST(PlannerTest, TakesNoMoreDiskThanTheStageThatCachesFewestTokensMakesUseOf) {
  const ModelCost cost = MakeCost(std::vector<int64_t>(16, kMiB), 64);
  const int64_t block = 8 * 4096;
  std::vector<PlannerWorker> workers = MakeWorkers({8 * kMiB + 10 * block, 8 * kMiB + 12 * block});
  workers[0].kv_disk_bytes = int64_t{1} << 40;
  const auto plan = PlanStages(cost, workers, {.context_tokens = 64, .kv_tokens = 64 * 100});
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->stages[0].stage.num_layers(), 8);
  EXPECT_EQ(plan->stages[0].kv_disk_bytes, 3 * block);  // in the memory of one there
  EXPECT_EQ(plan->stages[1].kv_disk_bytes, 0);
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

// -- Experts that stay on disks.

/// Layers of 10 bytes and 8 experts of 10 bytes, of which a row chooses 2, packed in slots of 12.
ModelCost MakeMoeCost(int num_layers, int64_t kv_values_per_token = 0) {
  ModelCost cost = MakeCost(std::vector<int64_t>(num_layers, 90), kv_values_per_token);
  for (LayerCost& layer : cost.layers) {
    layer.expert_bytes = 80;
    layer.num_experts = 8;
    layer.expert_slot_bytes = 12;
    layer.experts_per_token = 2;
  }
  return cost;
}

std::vector<PlannerWorker> MakeOffloadingWorkers(const std::vector<int64_t>& budgets,
                                                 int64_t process_bytes = 0) {
  std::vector<PlannerWorker> workers = MakeWorkers(budgets);
  for (PlannerWorker& worker : workers) {
    worker.offloads = true;
    worker.process_bytes = process_bytes;
  }
  return workers;
}

TEST(PlannerTest, LeavesExpertsOnTheDiskOnlyWhereTheModelDoesNotFit) {
  const ModelCost cost = MakeMoeCost(2);
  const auto resident = PlanStages(cost, MakeOffloadingWorkers({180}), {});
  ASSERT_TRUE(resident.ok()) << resident.status();
  EXPECT_EQ(resident->stages[0].expert_bytes, 0);
  const auto plan = PlanStages(cost, MakeOffloadingWorkers({179}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->stages[0].weight_bytes, 180);
  EXPECT_EQ(plan->stages[0].expert_bytes, 13 * 12);  // of 179 - 2 * 10
  // A box that is too small for a layer stays spare as long as the others hold the model.
  const auto spare = PlanStages(cost, MakeOffloadingWorkers({80, 180}), {});
  ASSERT_TRUE(spare.ok()) << spare.status();
  EXPECT_THAT(Split(*spare), ElementsAre(Stage{2, 2}));
  EXPECT_EQ(spare->stages[0].expert_bytes, 0);
}

TEST(PlannerTest, MixesResidentAndOffloadingStages) {
  std::vector<PlannerWorker> workers = MakeOffloadingWorkers({100, 40, 50});
  workers[0].offloads = false;
  const auto plan = PlanStages(MakeMoeCost(4), workers, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  // Neither the first nor the second has room for two layers.
  EXPECT_THAT(Split(*plan), ElementsAre(Stage{1, 1}, Stage{2, 2}, Stage{3, 4}));
  EXPECT_EQ(plan->stages[0].expert_bytes, 0);
  EXPECT_EQ(plan->stages[1].expert_bytes, 24);
  EXPECT_EQ(plan->stages[2].expert_bytes, 24);
}

TEST(PlannerTest, ASlotEachForTheExpertsOfARowIsTheLeast) {
  // 10 + 2 * 12, a KV cache of 5 tokens, 7 for the process, 11 for steps.
  const PlannerOptions options = {.context_tokens = 5, .step_memory = {.layers = 11}};
  const ModelCost cost = MakeMoeCost(1, 1);
  const auto plan = PlanStages(cost, MakeOffloadingWorkers({57}, 7), options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->stages[0].kv_bytes, 5);
  EXPECT_EQ(plan->stages[0].expert_bytes, 24);
  EXPECT_FALSE(PlanStages(cost, MakeOffloadingWorkers({56}, 7), options).ok());
}

TEST(PlannerTest, StepsTakeMemoryByWhatTheStageDoes) {
  ModelCost cost = MakeMoeCost(2);
  const StepMemory steps = {.layers = 4, .head = 2, .drafting = 100, .activations = 1};
  const auto plan = PlanStages(cost, MakeOffloadingWorkers({60, 60}, 3), {.step_memory = steps});
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->stages.size(), 2u);
  // 60 - 10 - 3 - 4 - (2 stages + 2 on the links), and the head.
  EXPECT_EQ(plan->stages[0].expert_bytes, 36);
  EXPECT_EQ(plan->stages[1].expert_bytes, 36);
  cost.layers[0].weight_bytes += 4;
  cost.layers[1].weight_bytes += 2;
  const auto fuller = PlanStages(cost, MakeOffloadingWorkers({60, 60}, 3), {.step_memory = steps});
  ASSERT_TRUE(fuller.ok()) << fuller.status();
  EXPECT_EQ(fuller->stages[0].expert_bytes, 24);
  EXPECT_EQ(fuller->stages[1].expert_bytes, 24);
}

TEST(PlannerTest, TheKvCacheTakesHalfOfWhatIsLeftAtMost) {
  const ModelCost cost = MakeMoeCost(1, 1);
  // 10 + 24 + 4 of 78 are needed.
  const auto workers = MakeOffloadingWorkers({78});
  const auto much = PlanStages(cost, workers, {.context_tokens = 4, .kv_tokens = 1000});
  ASSERT_TRUE(much.ok()) << much.status();
  EXPECT_EQ(much->stages[0].kv_bytes, 4 + 20);
  EXPECT_EQ(much->stages[0].expert_bytes, 36);  // of 44
  const auto little = PlanStages(cost, workers, {.context_tokens = 4, .kv_tokens = 8});
  ASSERT_TRUE(little.ok()) << little.status();
  EXPECT_EQ(little->stages[0].kv_bytes, 8);
  EXPECT_EQ(little->stages[0].expert_bytes, 60);
}

TEST(PlannerTest, TheStageThatCachesFewestTokensDecidesForAll) {
  // By itself, the first would cache 14 tokens and the second 12.
  const auto plan = PlanStages(MakeMoeCost(3, 1), MakeOffloadingWorkers({58, 86}),
                               {.context_tokens = 4, .kv_tokens = 1000});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(Split(*plan), ElementsAre(Stage{1, 1}, Stage{2, 3}));
  EXPECT_EQ(plan->stages[0].kv_bytes, 12);
  EXPECT_EQ(plan->stages[0].expert_bytes, 36);  // 58 - 10 - 12
  EXPECT_EQ(plan->stages[1].kv_bytes, 2 * 12);
  EXPECT_EQ(plan->stages[1].expert_bytes, 36);  // of 86 - 20 - 24
  const auto roomy = PlanStages(MakeMoeCost(3, 1), MakeOffloadingWorkers({58, 140}),
                                {.context_tokens = 4, .kv_tokens = 1000});
  ASSERT_TRUE(roomy.ok()) << roomy.status();
  EXPECT_THAT(Split(*roomy), ElementsAre(Stage{1, 1}, Stage{2, 3}));
  EXPECT_EQ(roomy->stages[0].kv_bytes, 14);
  EXPECT_EQ(roomy->stages[1].kv_bytes, 2 * 14);  // and not 8 + 44
  EXPECT_EQ(roomy->stages[1].expert_bytes, 84);  // of 140 - 20 - 28
}

TEST(PlannerTest, SaysWhatAnOffloadingStageLacks) {
  ModelCost cost = MakeCost({100 * kMiB, 100 * kMiB}, 256);
  for (LayerCost& layer : cost.layers) {
    layer.expert_bytes = 80 * kMiB;
    layer.num_experts = 8;
    layer.expert_slot_bytes = 10 * kMiB;
    layer.experts_per_token = 2;
  }
  const PlannerOptions options = {.context_tokens = 4096, .step_memory = {.layers = 4 * kMiB}};
  EXPECT_EQ(
      PlanStages(cost, MakeOffloadingWorkers({60 * kMiB, 44 * kMiB}, 2 * kMiB), options).status(),
      absl::FailedPreconditionError(
          "no split fits: stage 2 of 2 (layers 1..1 with head) needs 47.0 MiB of memory, 20.0 MiB "
          "for its always-active weights, 1.00 MiB for the KV cache of one sequence of 4096 "
          "tokens, 20.0 MiB for 2 experts and 6.00 MiB for steps and the process; box1 has 44.0 "
          "MiB"));
  std::vector<PlannerWorker> mixed = MakeOffloadingWorkers({60 * kMiB, 60 * kMiB}, 2 * kMiB);
  mixed[0].offloads = false;
  EXPECT_THAT(
      std::string(PlanStages(cost, mixed, options).status().message()),
      HasSubstr("stage 1 of 2 (layers 0..0 with embedding) needs 101 MiB of memory, 100 MiB "
                "for its weights and 1.00 MiB for the KV cache of one sequence of 4096 "
                "tokens; box0 has 60.0 MiB"));
}

TEST(PlannerTest, SaysThatOnlyAPackStaysOnDisks) {
  ModelCost cost = MakeMoeCost(2);
  for (LayerCost& layer : cost.layers) layer.expert_slot_bytes = 0;
  EXPECT_EQ(PlanStages(cost, MakeOffloadingWorkers({100}), {}).status(),
            absl::FailedPreconditionError(
                "the model needs 180 B for weights and 0 B for the KV cache of 0 tokens, but the "
                "worker offers 100 B; only a packed model's experts (caravan pack) may stay on "
                "disks"));
  // To workers that were told not to, this is no news.
  EXPECT_EQ(PlanStages(cost, MakeWorkers({100}), {}).status(),
            absl::FailedPreconditionError("the model needs 180 B for weights and 0 B for the KV "
                                          "cache of 0 tokens, but the worker offers 100 B"));
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

TEST(PlannerTest, FindsTheBestOfAllSplitsWhereExpertsMayStayOnDisks) {
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
