// Plans whose workers may leave experts on their disks.

#include <string>
#include <vector>

#include "cluster/planner.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cluster/planner_testing.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kMiB = 1 << 20;

TEST(OffloadingPlanTest, LeavesExpertsOnTheDiskOnlyWhereTheModelDoesNotFit) {
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
  EXPECT_THAT(SplitOf(*spare), ElementsAre(StageEnd{2, 2}));
  EXPECT_EQ(spare->stages[0].expert_bytes, 0);
}

TEST(OffloadingPlanTest, MixesResidentAndOffloadingStages) {
  std::vector<PlannerWorker> workers = MakeOffloadingWorkers({100, 40, 50});
  workers[0].offloads = false;
  const auto plan = PlanStages(MakeMoeCost(4), workers, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  // Neither the first nor the second has room for two layers.
  EXPECT_THAT(SplitOf(*plan), ElementsAre(StageEnd{1, 1}, StageEnd{2, 2}, StageEnd{3, 4}));
  EXPECT_EQ(plan->stages[0].expert_bytes, 0);
  EXPECT_EQ(plan->stages[1].expert_bytes, 24);
  EXPECT_EQ(plan->stages[2].expert_bytes, 24);
}

TEST(OffloadingPlanTest, ASlotEachForTheExpertsOfARowIsTheLeast) {
  // 10 + 2 * 12, a KV cache of 5 tokens, 7 for the process, 11 for steps.
  const PlannerOptions options = {.context_tokens = 5, .step_memory = {.layers = 11}};
  const ModelCost cost = MakeMoeCost(1, 1);
  const auto plan = PlanStages(cost, MakeOffloadingWorkers({57}, 7), options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->stages[0].kv_bytes, 5);
  EXPECT_EQ(plan->stages[0].expert_bytes, 24);
  EXPECT_FALSE(PlanStages(cost, MakeOffloadingWorkers({56}, 7), options).ok());
}

TEST(OffloadingPlanTest, StepsTakeMemoryByWhatTheStageDoes) {
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

TEST(OffloadingPlanTest, TheKvCacheTakesHalfOfWhatIsLeftAtMost) {
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

TEST(OffloadingPlanTest, TheStageThatCachesFewestTokensDecidesForAll) {
  // By itself, the first would cache 14 tokens and the second 12.
  const auto plan = PlanStages(MakeMoeCost(3, 1), MakeOffloadingWorkers({58, 86}),
                               {.context_tokens = 4, .kv_tokens = 1000});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(SplitOf(*plan), ElementsAre(StageEnd{1, 1}, StageEnd{2, 3}));
  EXPECT_EQ(plan->stages[0].kv_bytes, 12);
  EXPECT_EQ(plan->stages[0].expert_bytes, 36);  // 58 - 10 - 12
  EXPECT_EQ(plan->stages[1].kv_bytes, 2 * 12);
  EXPECT_EQ(plan->stages[1].expert_bytes, 36);  // of 86 - 20 - 24
  const auto roomy = PlanStages(MakeMoeCost(3, 1), MakeOffloadingWorkers({58, 140}),
                                {.context_tokens = 4, .kv_tokens = 1000});
  ASSERT_TRUE(roomy.ok()) << roomy.status();
  EXPECT_THAT(SplitOf(*roomy), ElementsAre(StageEnd{1, 1}, StageEnd{2, 3}));
  EXPECT_EQ(roomy->stages[0].kv_bytes, 14);
  EXPECT_EQ(roomy->stages[1].kv_bytes, 2 * 14);  // and not 8 + 44
  EXPECT_EQ(roomy->stages[1].expert_bytes, 84);  // of 140 - 20 - 28
}

TEST(OffloadingPlanTest, SaysWhatAnOffloadingStageLacks) {
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

TEST(OffloadingPlanTest, SaysThatOnlyAPackStaysOnDisks) {
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

}  // namespace
}  // namespace caravan
