// Plans by memory in which all weights are resident.

#include "cluster/planner.h"

#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cluster/planner_testing.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kMiB = 1 << 20;

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
  EXPECT_THAT(SplitOf(*plan), ElementsAre(StageEnd{1, 1}, StageEnd{2, 4}));
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
  EXPECT_THAT(SplitOf(*plan), ElementsAre(StageEnd{1, 4}, StageEnd{2, 6}));
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
  EXPECT_THAT(SplitOf(*plan), ElementsAre(StageEnd{1, 4}, StageEnd{2, 6}, StageEnd{3, 12}));
}

TEST(PlannerTest, BalancesWhatIsNotAtTheLargestShare) {
  // The head keeps the last worker at its limit whatever the others do: they share evenly.
  const auto plan =
      PlanStages(MakeCost(std::vector<int64_t>(7, 10), 0, 0, 90), MakeWorkers({100, 100, 100}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(SplitOf(*plan), ElementsAre(StageEnd{1, 3}, StageEnd{2, 6}, StageEnd{3, 7}));
}

TEST(PlannerTest, EndsTheFirstStageEarlierWhenSplitsAreEqual) {
  const auto plan = PlanStages(MakeCost({10, 10, 10}), MakeWorkers({100, 100}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(SplitOf(*plan), ElementsAre(StageEnd{1, 1}, StageEnd{2, 3}));
}

TEST(PlannerTest, KeepsTheLastWorkersSpareWhenLayersRunOut) {
  const auto plan = PlanStages(MakeCost({10, 10}), MakeWorkers({100, 100, 500}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(SplitOf(*plan), ElementsAre(StageEnd{1, 1}, StageEnd{2, 2}));
}

TEST(PlannerTest, CallsASpareWhenAnEarlierWorkerIsTooSmall) {
  const auto plan = PlanStages(MakeCost({10, 10}), MakeWorkers({100, 5, 100}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(SplitOf(*plan), ElementsAre(StageEnd{1, 1}, StageEnd{3, 2}));
}

TEST(PlannerTest, LeavesOutAWorkerThatIsTooSmallForALayer) {
  const auto plan = PlanStages(MakeCost({10, 10, 10, 10}), MakeWorkers({9, 25, 8, 25}), {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(SplitOf(*plan), ElementsAre(StageEnd{2, 2}, StageEnd{4, 4}));
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
  EXPECT_THAT(SplitOf(*roomier), ElementsAre(StageEnd{1, 1}, StageEnd{2, 4}));
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

}  // namespace
}  // namespace caravan
