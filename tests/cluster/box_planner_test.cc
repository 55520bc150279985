// Plans against going through all of them.

#include "cluster/box_planner.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cluster/known_boxes.h"
#include "cluster/stage_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cluster/plan_testing.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

/// Everything that a plan has to weigh, at random.
struct Case {
  ModelCost cost;
  std::vector<BoxCount> boxes;
  DecodeLoad load;
  PlanAim aim = PlanAim::kBulk;
};

Case RandomCase(std::mt19937& random) {
  const auto number = [&](int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random);
  };
  Case drawn;
  const int64_t layers = number(1, 6);
  int64_t bytes = 0;
  for (int64_t i = 0; i < layers; ++i) {
    const bool is_dense = number(0, 4) == 0;
    drawn.cost.layers.push_back(
        SmallModelLayer(number(1, 8) << 20, is_dense ? 0 : number(1, 4) << 20));
    bytes += drawn.cost.layers.back().weight_bytes;
  }
  drawn.cost.embedding = SmallModelLayer(number(1, 4) << 20, 0);
  drawn.cost.embedding.kv_values_per_token = 0;
  drawn.cost.head = SmallModelLayer(number(1, 4) << 20, 0);
  drawn.cost.head.kv_values_per_token = 0;
  const int64_t kinds = number(1, 3);
  for (int64_t i = 0; i < kinds; ++i) {
    Box box;
    box.name = std::string(1, static_cast<char>('a' + i));
    box.cpu.multiply_adds = static_cast<double>(number(1, 20)) * 1e9;
    box.cpu.attention_multiply_adds = box.cpu.multiply_adds / 3;
    box.memory.bytes = number(1, bytes);
    box.memory.read_bytes = static_cast<double>(number(1, 40)) * 1e9;
    box.disk.bytes = number(bytes / 4, 2 * bytes);
    box.disk.read_bytes = static_cast<double>(number(1, 80)) * 1e8;
    if (number(0, 1) == 1) {
      box.card.count = static_cast<int>(number(1, 2));
      box.card.bytes = number(1, bytes / 2);
      box.card.read_bytes = static_cast<double>(number(10, 400)) * 1e9;
      box.card.multiply_adds = static_cast<double>(number(1, 100)) * 1e10;
      box.card.pcie_bytes = static_cast<double>(number(0, 3)) * 4e9;
    }
    box.network.latency_seconds = static_cast<double>(number(0, 2)) * 1e-3;
    box.network.bytes = static_cast<double>(number(1, 3) * number(1, 3)) * 1e7;
    // Some never run out.
    const int64_t count = number(0, 3) == 0 ? layers + number(0, 300) : number(1, 2);
    drawn.boxes.push_back({box, static_cast<int>(kinds == 1 ? number(1, 4) : count)});
  }
  drawn.load.jobs = number(1, 3) == 1 ? 1 : number(1, 60);
  drawn.load.context_tokens = number(1, 512);
  drawn.aim = number(0, 1) == 0 ? PlanAim::kBulk : PlanAim::kInteractive;
  return drawn;
}

double SecondsPerToken(const Case& drawn, const std::vector<BoxStage>& stages) {
  DecodeLoad load = drawn.load;
  if (drawn.aim == PlanAim::kInteractive) load.decoding = 1;
  const auto time = PredictPipeline(SmallModelConfig(), drawn.cost, stages, load);
  return time.ok() ? time->seconds_per_token : kImpossible;
}

/// Puts any box that is left behind `stages`, with any number of layers.
void TryAll(const Case& drawn, std::vector<int>& left, std::vector<BoxStage>& stages,
            double& least) {
  const auto layers = static_cast<int>(drawn.cost.layers.size());
  const int first = stages.empty() ? 0 : stages.back().stage.end_layer;
  if (first == layers) {
    least = std::min(least, SecondsPerToken(drawn, stages));
    return;
  }
  for (size_t kind = 0; kind < left.size(); ++kind) {
    if (left[kind] == 0) continue;
    --left[kind];
    for (int end = first + 1; end <= layers; ++end) {
      stages.push_back({&drawn.boxes[kind].box, StageOf(first, end, layers)});
      TryAll(drawn, left, stages, least);
      stages.pop_back();
    }
    ++left[kind];
  }
}

TEST(BoxPlanner, NoOtherPlanIsBetter) {
  std::mt19937 random(20);
  int planned = 0;
  int several = 0;
  int refused = 0;
  for (int i = 0; i < 600; ++i) {
    const Case drawn = RandomCase(random);
    std::vector<int> left;
    for (const BoxCount& kind : drawn.boxes) left.push_back(kind.count);
    std::vector<BoxStage> stages;
    double least = kImpossible;
    TryAll(drawn, left, stages, least);
    const auto plan = PlanBoxes(SmallModelConfig(), drawn.cost, drawn.boxes, drawn.load, drawn.aim);
    if (!plan.ok()) {
      EXPECT_EQ(least, kImpossible) << "case " << i << ": " << plan.status();
      EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
      EXPECT_THAT(std::string(plan.status().message()), HasSubstr("lacks "));
      ++refused;
      continue;
    }
    EXPECT_NEAR(SecondsPerToken(drawn, *plan), least, 1e-9 * least) << "case " << i;
    ++planned;
    several += plan->size() > 1 ? 1 : 0;
  }
  // The cases are worth the name.
  EXPECT_GT(planned, 300);
  EXPECT_GT(several, 150);
  EXPECT_GT(refused, 30);
}

/// The case with more of something in each box, and of nothing less.
Case WithBetterBoxes(std::mt19937& random, Case better) {
  const auto times = [&] { return std::uniform_real_distribution<double>(1, 4)(random); };
  for (BoxCount& kind : better.boxes) {
    Box& box = kind.box;
    switch (std::uniform_int_distribution<int>(0, 2)(random)) {
      case 0:
        box.memory.bytes = static_cast<int64_t>(times() * static_cast<double>(box.memory.bytes));
        break;
      case 1:
        box.disk.read_bytes *= times();
        break;
      case 2:
        box.network.bytes *= times();
        box.network.latency_seconds /= times();
        break;
    }
  }
  return better;
}

/// `stages`, which point into `from`, on the boxes of `to` in their place.
std::vector<BoxStage> OnBoxesOf(const Case& to, const Case& from, std::vector<BoxStage> stages) {
  for (BoxStage& stage : stages) {
    const auto kind =
        std::find_if(from.boxes.begin(), from.boxes.end(),
                     [&](const BoxCount& candidate) { return &candidate.box == stage.box; });
    stage.box = &to.boxes[static_cast<size_t>(kind - from.boxes.begin())].box;
  }
  return stages;
}

// Neither of the same stages nor of those that are best then.
TEST(BoxPlanner, MoreMemoryAFasterDiskAndAFasterNetworkNeverForetellLess) {
  std::mt19937 random(23);
  int faster = 0;
  int held_before = 0;
  for (int i = 0; i < 1000; ++i) {
    const Case drawn = RandomCase(random);
    const Case better = WithBetterBoxes(random, drawn);
    const auto plan = PlanBoxes(SmallModelConfig(), drawn.cost, drawn.boxes, drawn.load, drawn.aim);
    if (!plan.ok()) continue;
    ++held_before;
    const double before = SecondsPerToken(drawn, *plan);
    const std::vector<BoxStage> same = OnBoxesOf(better, drawn, *plan);
    EXPECT_LE(SecondsPerToken(better, same), before * (1 + 1e-9)) << "case " << i;
    const auto anew =
        PlanBoxes(SmallModelConfig(), better.cost, better.boxes, better.load, better.aim);
    ASSERT_TRUE(anew.ok()) << "case " << i << ": " << anew.status();
    const double after = SecondsPerToken(better, *anew);
    EXPECT_LE(after, before * (1 + 1e-9)) << "case " << i;
    faster += after < 0.99 * before ? 1 : 0;
  }
  EXPECT_GT(held_before, 500);
  EXPECT_GT(faster, 200);
}

// Of the same stages: those that are planned anew decode sooner, whatever prompts then take.
TEST(BoxPlanner, MoreMemoryAFasterDiskAndAFasterNetworkNeverForetellALaterFirstToken) {
  std::mt19937 random(24);
  int asked = 0;
  int sooner = 0;
  int other_chunk = 0;
  for (int i = 0; i < 1000; ++i) {
    Case drawn = RandomCase(random);
    for (BoxCount& kind : drawn.boxes) {
      // So that not all chunks are bound by arithmetic or the network.
      kind.box.cpu.multiply_adds *= std::pow(10, std::uniform_int_distribution<int>(0, 3)(random));
      kind.box.cpu.attention_multiply_adds = kind.box.cpu.multiply_adds;
      kind.box.network.bytes *= 100;
    }
    const Case better = WithBetterBoxes(random, drawn);
    const int64_t prompt = std::uniform_int_distribution<int64_t>(1, 4096)(random);
    const auto plan = PlanBoxes(SmallModelConfig(), drawn.cost, drawn.boxes, drawn.load, drawn.aim);
    if (!plan.ok()) continue;
    const std::vector<BoxStage> same = OnBoxesOf(better, drawn, *plan);
    const DecodeLoad load = {.jobs = 1, .context_tokens = 4096};
    const auto first =
        PredictSoonestFirstToken(SmallModelConfig(), drawn.cost, *plan, load, prompt);
    if (!first.ok()) continue;
    ++asked;
    const auto better_first =
        PredictSoonestFirstToken(SmallModelConfig(), better.cost, same, load, prompt);
    ASSERT_TRUE(better_first.ok()) << "case " << i << ": " << better_first.status();
    EXPECT_LE(better_first->seconds, first->seconds * (1 + 1e-9)) << "case " << i;
    sooner += better_first->seconds < 0.99 * first->seconds ? 1 : 0;
    // No chunk has it sooner.
    for (int64_t chunk = kLeastPromptChunk; chunk <= 4096; chunk *= 2) {
      const auto with_chunk =
          PredictFirstToken(SmallModelConfig(), drawn.cost, *plan, load, prompt, chunk);
      if (with_chunk.ok()) {
        EXPECT_GE(*with_chunk, first->seconds) << "case " << i;
      }
    }
    // Prompts together lose a tenth at most, for a smaller chunk.
    const auto prompts = PredictPrompts(SmallModelConfig(), drawn.cost, *plan, load);
    const auto better_prompts = PredictPrompts(SmallModelConfig(), better.cost, same, load);
    ASSERT_TRUE(prompts.ok() && better_prompts.ok()) << "case " << i;
    EXPECT_GE(better_prompts->tokens_per_second, prompts->tokens_per_second / 1.1 * (1 - 1e-9))
        << "case " << i;
    other_chunk += better_prompts->chunk_tokens != prompts->chunk_tokens ? 1 : 0;
  }
  EXPECT_GT(asked, 300);
  EXPECT_GT(sooner, 100);
  EXPECT_GT(other_chunk, 30);
}

TEST(BoxPlanner, NoBoxIsUsedMoreOftenThanItIsThere) {
  std::mt19937 random(7);
  for (int i = 0; i < 100; ++i) {
    const Case drawn = RandomCase(random);
    const auto plan = PlanBoxes(SmallModelConfig(), drawn.cost, drawn.boxes, drawn.load, drawn.aim);
    if (!plan.ok()) continue;
    for (const BoxCount& kind : drawn.boxes) {
      const auto used = std::count_if(plan->begin(), plan->end(), [&](const BoxStage& stage) {
        return stage.box == &kind.box;
      });
      EXPECT_LE(used, kind.count);
    }
    int next = 0;
    for (const BoxStage& stage : *plan) {
      EXPECT_EQ(stage.stage.first_layer, next);
      EXPECT_EQ(stage.stage.embeds, next == 0);
      next = stage.stage.end_layer;
    }
    EXPECT_EQ(next, static_cast<int>(drawn.cost.layers.size()));
    EXPECT_TRUE(plan->back().stage.has_head);
  }
}

ModelCost Layers(int num_layers) {
  ModelCost cost;
  cost.layers.assign(static_cast<size_t>(num_layers), SmallModelLayer(1 << 20, 16 << 20));
  return cost;
}

Box Roomy() {
  Box box = *FindBox("cpu");
  box.name = "roomy";
  box.memory.bytes = 100 * kGiB;
  return box;
}

TEST(BoxPlanner, ASlowBoxIsLeftOut) {
  Box slow = Roomy();
  slow.name = "slow";
  slow.cpu.multiply_adds /= 1000;
  slow.memory.read_bytes /= 1000;
  const std::vector<BoxCount> boxes = {{slow, 3}, {Roomy(), 1}};
  for (const PlanAim aim : {PlanAim::kBulk, PlanAim::kInteractive}) {
    const auto plan = PlanBoxes(SmallModelConfig(), Layers(8), boxes, {.jobs = 4}, aim);
    ASSERT_TRUE(plan.ok()) << plan.status();
    ASSERT_EQ(plan->size(), 1u);
    EXPECT_EQ(plan->front().box->name, "roomy");
  }
}

TEST(BoxPlanner, TheFasterBoxGetsMoreLayers) {
  Box fast = Roomy();
  fast.name = "fast";
  fast.memory.read_bytes *= 3;
  fast.cpu.multiply_adds *= 3;
  std::vector<BoxCount> boxes = {{Roomy(), 1}, {fast, 1}};
  for (BoxCount& kind : boxes) kind.box.network = {};  // as good as free
  // So many that arithmetic is all that counts.
  const auto plan = PlanBoxes(SmallModelConfig(), Layers(8), boxes, {.jobs = 6400}, PlanAim::kBulk);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->size(), 2u);
  for (const BoxStage& stage : *plan) {
    EXPECT_EQ(stage.stage.num_layers(), stage.box->name == "fast" ? 6 : 2);
  }
}

TEST(BoxPlanner, ALoneStreamNeedsNoSecondBoxWhereOneHoldsAll) {
  const std::vector<BoxCount> boxes = {{Roomy(), 4}};
  const DecodeLoad load = {.jobs = 6400};
  const auto alone = PlanBoxes(SmallModelConfig(), Layers(8), boxes, load, PlanAim::kInteractive);
  const auto bulk = PlanBoxes(SmallModelConfig(), Layers(8), boxes, load, PlanAim::kBulk);
  ASSERT_TRUE(alone.ok() && bulk.ok());
  EXPECT_EQ(alone->size(), 1u);
  EXPECT_GT(bulk->size(), 1u);
}

TEST(BoxPlanner, WhatLacksIsSaid) {
  Box small = Roomy();
  small.disk.bytes = 3 * Layers(1).layers[0].weight_bytes;
  const auto disk = PlanBoxes(SmallModelConfig(), Layers(8), std::vector<BoxCount>{{small, 2}}, {},
                              PlanAim::kBulk);
  EXPECT_EQ(disk.status().code(), absl::StatusCode::kFailedPrecondition);
  // Two layers too many, 257 MiB each.
  EXPECT_THAT(std::string(disk.status().message()), HasSubstr("box roomy) lacks "));
  EXPECT_THAT(std::string(disk.status().message()), HasSubstr(" of disk"));
  small = Roomy();
  small.memory.bytes = 0;
  const auto memory = PlanBoxes(SmallModelConfig(), Layers(8), std::vector<BoxCount>{{small, 1}},
                                {}, PlanAim::kBulk);
  EXPECT_THAT(std::string(memory.status().message()),
              HasSubstr("stage 1 (layers 0..7, box roomy) lacks 40.0 MiB of memory"));
}

TEST(BoxPlanner, WhatLacksOfTooManyDifferentBoxesIsSaidOfEndlesslyMany) {
  std::vector<BoxCount> boxes;
  for (int i = 1; i <= 6; ++i) {
    boxes.push_back({Roomy(), 10});
    boxes.back().box.name = std::string(1, static_cast<char>('a' + i));
    boxes.back().box.memory.bytes = i << 20;
  }
  const auto plan = PlanBoxes(SmallModelConfig(), Layers(20), boxes, {}, PlanAim::kBulk);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  // A layer that every token passes has 1 MiB, and two experts of 16 MiB are needed beside it.
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("box g) lacks "));
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr(" of memory"));
}

TEST(BoxPlanner, KindsThatNeverRunOutAreGoneThroughTogether) {
  std::vector<BoxCount> boxes;
  for (int i = 1; i <= 6; ++i) {
    boxes.push_back({Roomy(), 20});
    boxes.back().box.memory.read_bytes *= 1 + 0.1 * i;
  }
  const DecodeLoad load = {.jobs = 64};
  const auto plan = PlanBoxes(SmallModelConfig(), Layers(20), boxes, load, PlanAim::kBulk);
  ASSERT_TRUE(plan.ok()) << plan.status();
  for (const BoxStage& stage : *plan) EXPECT_EQ(stage.box, &boxes.back().box);
  EXPECT_GT(plan->size(), 1u);
}

TEST(BoxPlanner, TooManyDifferentBoxesAreRefused) {
  std::vector<BoxCount> boxes;
  for (int i = 1; i <= 6; ++i) {
    boxes.push_back({Roomy(), 10});
    boxes.back().box.memory.bytes += i;
  }
  const auto plan =
      PlanBoxes(SmallModelConfig(), Layers(20), boxes, {.jobs = 6400}, PlanAim::kBulk);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("6 kinds of box"));
  // Where even of endlessly many each has a network of its own, nothing is searched.
  std::vector<BoxCount> networks;
  for (int i = 1; i <= 3000; ++i) {
    networks.push_back({Roomy(), 1});
    networks.back().box.network.bytes += i;
  }
  EXPECT_EQ(PlanBoxes(SmallModelConfig(), Layers(20), networks, {}, PlanAim::kBulk).status().code(),
            absl::StatusCode::kInvalidArgument);
  // But a lone job takes few of them, of the kind that is best.
  const auto alone = PlanBoxes(SmallModelConfig(), Layers(20), boxes, {}, PlanAim::kBulk);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->size(), 1u);
}

}  // namespace
}  // namespace caravan
