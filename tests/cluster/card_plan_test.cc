// Plans with cards, whose memory holds a stage's steps too.

#include <vector>

#include "cluster/planner.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

/// Layers of 10 bytes and four experts of 12, two a token; a KV value takes a byte.
ModelCost MakeCost(int layers) {
  LayerCost layer;
  layer.weight_bytes = 10 + 4 * 12;
  layer.expert_bytes = 4 * 12;
  layer.num_experts = 4;
  layer.expert_slot_bytes = 12;
  layer.experts_per_token = 2;
  layer.kv_values_per_token = 1;
  ModelCost cost;
  cost.layers.assign(static_cast<size_t>(layers), layer);
  return cost;
}

PlannerWorker MakeWorker(uint32_t id, int64_t bytes, bool on_card, bool offloads = false) {
  PlannerWorker worker;
  worker.id = WorkerId{id};
  worker.name = on_card ? "card-box" : "cpu-box";
  worker.memory_budget_bytes = bytes;
  worker.kv_dtype = DType::kF8E4M3;
  worker.on_card = on_card;
  worker.offloads = offloads;
  return worker;
}

// Steps take 5 bytes on a CPU, which plans leave aside, and 7 on a card.
const PlannerOptions kOptions = {
    .context_tokens = 4, .step_memory = {.layers = 5}, .card_step_memory = {.layers = 7}};

TEST(CardPlanTest, StepsTakeOfACardsMemoryWhereAllExpertsFitToo) {
  const ModelCost cost = MakeCost(1);
  EXPECT_TRUE(PlanStages(cost, {MakeWorker(1, 58 + 4, false)}, kOptions).ok());
  EXPECT_TRUE(PlanStages(cost, {MakeWorker(1, 58 + 4 + 7, true)}, kOptions).ok());
  const auto lacking = PlanStages(cost, {MakeWorker(1, 58 + 4 + 6, true)}, kOptions);
  EXPECT_EQ(lacking.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(lacking.status().message(), HasSubstr("7 B for steps; card-box has 68 B"));
}

TEST(CardPlanTest, ExpertsGetWhatACardHasBesides) {
  PlannerOptions options = kOptions;
  options.kv_tokens = 4;
  const auto plan =
      PlanStages(MakeCost(1), {MakeWorker(1, 10 + 4 + 7 + 3 * 12 + 5, true, true)}, options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->stages[0].kv_bytes, 4);
  EXPECT_EQ(plan->stages[0].expert_bytes, 3 * 12);
}

TEST(CardPlanTest, ACardAndACpuShareALine) {
  const auto plan =
      PlanStages(MakeCost(4), {MakeWorker(1, 140, true), MakeWorker(2, 140, false)}, kOptions);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->stages.size(), 2u);
  EXPECT_EQ(plan->stages[0].stage.end_layer, 2);
  // What is left of 140 after weights and steps, up to one longest sequence.
  EXPECT_EQ(plan->stages[0].kv_bytes, 8);
  EXPECT_FALSE(
      PlanStages(MakeCost(4), {MakeWorker(1, 130, true), MakeWorker(2, 140, false)}, kOptions)
          .ok());
}

TEST(CardPlanTest, NcclTakesOfACardThatHasANeighbourToJoin) {
  constexpr int64_t kRoom = kNcclProcessBytes + 1000;
  const ModelCost cost = MakeCost(2);
  PlannerOptions options = kOptions;
  options.kv_tokens = kRoom;  // as many as fit
  PlannerWorker a = MakeWorker(1, kRoom, true);
  PlannerWorker b = MakeWorker(2, kRoom, true);
  a.has_nccl = true;
  const auto alone = PlanStages(cost, {a, b}, options);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->stages[0].kv_bytes, kRoom - 58 - 7);
  b.has_nccl = true;
  const auto joined = PlanStages(cost, {a, b}, options);
  ASSERT_TRUE(joined.ok()) << joined.status();
  for (const StagePlan& stage : joined->stages) EXPECT_EQ(stage.kv_bytes, 1000 - 58 - 7);
  const auto single = PlanStages(MakeCost(1), {a}, options);
  ASSERT_TRUE(single.ok()) << single.status();
  EXPECT_EQ(single->stages[0].kv_bytes, kRoom - 58 - 7);
}

}  // namespace
}  // namespace caravan
