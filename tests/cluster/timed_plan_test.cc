// Plans of workers whose boxes are known, against going through all of them.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cluster/known_boxes.h"
#include "cluster/planner.h"
#include "cluster/step_time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/kv_rows.h"
#include "tests/cluster/plan_testing.h"

namespace caravan {
namespace {

constexpr int64_t kMiB = 1 << 20;

const ModelConfig& Config() {
  static const ModelConfig* const config = new ModelConfig(SmallModelConfig());
  return *config;
}

struct Case {
  ModelCost cost;
  std::vector<PlannerWorker> workers;
  PlannerOptions options;
};

Box BoxOfRates(double gb_per_s, double disk_gb_per_s) {
  Box box = *FindBox("cpu");
  box.network = *FindPart<Box::Network>("1gbe");
  box.memory.read_bytes = gb_per_s * 1e9;
  box.cpu.multiply_adds = gb_per_s * 1e9;
  box.cpu.attention_multiply_adds = gb_per_s * 3e8;
  box.disk.read_bytes = disk_gb_per_s * 1e9;
  return box;
}

PlannerWorker MakeWorker(uint32_t id, int64_t budget, const Box& box) {
  PlannerWorker worker;
  worker.id = WorkerId{id};
  worker.name = absl::StrCat("box-", id);
  worker.memory_budget_bytes = budget;
  worker.kv_dtype = DType::kF16;
  worker.box = box;
  return worker;
}

PlannerOptions Options(PlanAim aim) {
  PlannerOptions options;
  options.context_tokens = 64;
  options.kv_tokens = 512;
  options.config = &Config();
  options.aim = aim;
  return options;
}

ModelCost Layers(int num_layers) {
  ModelCost cost;
  cost.layers.assign(static_cast<size_t>(num_layers), SmallModelLayer(kMiB, kMiB));
  return cost;
}

Case RandomCase(std::mt19937& random) {
  const auto number = [&](int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random);
  };
  Case drawn;
  drawn.options = Options(number(0, 1) == 0 ? PlanAim::kBulk : PlanAim::kInteractive);
  drawn.options.context_tokens = 64 * number(1, 8);
  drawn.options.kv_tokens = drawn.options.context_tokens * number(1, 12);
  drawn.options.step_memory = {.layers = number(0, 2) * kMiB};
  int64_t bytes = 0;
  for (int64_t i = number(1, 6); i > 0; --i) {
    const bool is_dense = number(0, 4) == 0;
    drawn.cost.layers.push_back(
        SmallModelLayer(number(1, 8) * kMiB, is_dense ? 0 : number(1, 4) * kMiB));
    bytes += drawn.cost.layers.back().weight_bytes;
  }
  drawn.cost.embedding.weight_bytes = number(1, 4) * kMiB;
  drawn.cost.head.weight_bytes = number(1, 4) * kMiB;
  drawn.cost.head.active_bytes_per_token = drawn.cost.head.weight_bytes;
  const int64_t workers = number(1, 4);
  for (int64_t i = 1; i <= workers; ++i) {
    // Some are equal.
    if (i > 1 && number(0, 3) == 0) {
      drawn.workers.push_back(drawn.workers.back());
      drawn.workers.back().id = WorkerId(static_cast<uint32_t>(i));
      continue;
    }
    Box box =
        BoxOfRates(static_cast<double>(number(1, 40)), 0.1 * static_cast<double>(number(1, 60)));
    box.network.latency_seconds = static_cast<double>(number(0, 2)) * 1e-3;
    drawn.workers.push_back(
        MakeWorker(static_cast<uint32_t>(i), number(bytes / 8, bytes + bytes / 2), box));
    PlannerWorker& worker = drawn.workers.back();
    worker.offloads = number(0, 2) > 0;
    worker.process_bytes = number(0, 1) * kMiB;
    // Of a row, Q8_0 takes no whole number of blocks here.
    constexpr DType kKv[] = {DType::kF32, DType::kF16, DType::kQ8_0};
    worker.kv_dtype = kKv[number(0, 2)];
  }
  return drawn;
}

/// A stage of a plan that is tried, by the header's words; nullopt: it does not fit.
struct Tried {
  int64_t slots = 0;
  int64_t kv_tokens = 0;
};
std::optional<Tried> Try(const Case& drawn, const PlannerWorker& worker, const StageSpec& spec) {
  const LayerCost cost = drawn.cost.Of(spec);
  const auto kv = [&](int64_t tokens) {
    return tokens * KvBytes(worker.kv_dtype, cost.kv_values_per_token);
  };
  const int64_t wanted = kv(drawn.options.kv_tokens);
  int64_t spare = worker.memory_budget_bytes - cost.weight_bytes - kv(drawn.options.context_tokens);
  if (spare >= 0) {
    const int64_t bytes = std::min(wanted, kv(drawn.options.context_tokens) + spare);
    return Tried{cost.num_experts, bytes / kv(1)};
  }
  if (!worker.offloads || cost.num_experts == 0) return std::nullopt;
  const int64_t fixed =
      cost.always_active_bytes() + worker.process_bytes + drawn.options.step_memory.layers;
  spare = worker.memory_budget_bytes - fixed - kv(drawn.options.context_tokens) -
          2 * cost.expert_slot_bytes;
  if (spare < 0) return std::nullopt;
  const int64_t bytes = std::min(wanted, kv(drawn.options.context_tokens) + spare / 2);
  return Tried{(worker.memory_budget_bytes - fixed - bytes) / cost.expert_slot_bytes,
               bytes / kv(1)};
}

struct Placed {
  const PlannerWorker* worker = nullptr;
  StageSpec stage;
};

/// Tokens/s; 0 where it does not fit.
double RateOf(const Case& drawn, const std::vector<Placed>& placed) {
  const PlannerOptions& options = drawn.options;
  const bool alone = options.aim == PlanAim::kInteractive;
  double best = 0;
  for (int64_t jobs = alone ? 1 : options.kv_tokens / options.context_tokens; jobs >= 1;
       jobs /= 2) {
    std::vector<Box> boxes(placed.size());
    std::vector<BoxStage> stages;
    for (size_t i = 0; i < placed.size(); ++i) {
      const PlannerWorker& worker = *placed[i].worker;
      const std::optional<Tried> tried = Try(drawn, worker, placed[i].stage);
      if (!tried.has_value()) return 0;
      if (tried->kv_tokens < jobs * options.context_tokens) break;
      const LayerCost cost = drawn.cost.Of(placed[i].stage);
      boxes[i] = *worker.box;
      boxes[i].disk.bytes = cost.weight_bytes;
      boxes[i].memory.bytes =
          cost.always_active_bytes() +
          jobs * options.context_tokens * KvBytes(worker.kv_dtype, cost.kv_values_per_token) +
          tried->slots * (cost.num_experts == 0 ? 0 : cost.expert_bytes / cost.num_experts);
      stages.push_back({&boxes[i], placed[i].stage, worker.kv_dtype});
    }
    if (stages.size() < placed.size()) continue;
    const auto time = PredictPipeline(Config(), drawn.cost, stages,
                                      {.jobs = jobs, .context_tokens = options.context_tokens});
    EXPECT_TRUE(time.ok()) << time.status();
    if (time.ok()) best = std::max(best, time->tokens_per_second);
  }
  return best;
}

/// Puts any worker that is left behind `placed`, with any number of layers.
void TryAll(const Case& drawn, std::vector<Placed>& placed, double& best) {
  const auto layers = static_cast<int>(drawn.cost.layers.size());
  const int first = placed.empty() ? 0 : placed.back().stage.end_layer;
  if (first == layers) {
    best = std::max(best, RateOf(drawn, placed));
    return;
  }
  for (const PlannerWorker& worker : drawn.workers) {
    if (std::any_of(placed.begin(), placed.end(),
                    [&](const Placed& each) { return each.worker == &worker; })) {
      continue;
    }
    for (int end = first + 1; end <= layers; ++end) {
      placed.push_back({&worker, {first, end, first == 0, end == layers}});
      TryAll(drawn, placed, best);
      placed.pop_back();
    }
  }
}

std::vector<Placed> PlacedBy(const Case& drawn, const PipelinePlan& plan) {
  std::vector<Placed> placed;
  for (const StagePlan& stage : plan.stages) {
    placed.push_back({&drawn.workers[Number(stage.worker) - 1], stage.stage});
  }
  return placed;
}

TEST(TimedPlan, NoOtherPlanIsBetter) {
  constexpr uint32_t kSeed = 20261128;
  std::mt19937 random(kSeed);
  int planned = 0;
  int several = 0;
  int offloading = 0;
  int refused = 0;
  for (int i = 0; i < 800; ++i) {
    SCOPED_TRACE(absl::StrCat("seed ", kSeed, ", case ", i));
    const Case drawn = RandomCase(random);
    std::vector<Placed> placed;
    double best = 0;
    TryAll(drawn, placed, best);
    const auto plan = PlanStages(drawn.cost, drawn.workers, drawn.options);
    if (!plan.ok()) {
      EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
      EXPECT_EQ(best, 0);
      ++refused;
      continue;
    }
    ASSERT_TRUE(plan->forecast.has_value());
    EXPECT_NEAR(RateOf(drawn, PlacedBy(drawn, *plan)), best, 1e-9 * best);
    ++planned;
    several += plan->stages.size() > 1 ? 1 : 0;
    for (const StagePlan& stage : plan->stages) {
      const PlannerWorker& worker = drawn.workers[Number(stage.worker) - 1];
      offloading += stage.expert_bytes > 0 ? 1 : 0;
      const int64_t weights = stage.expert_bytes == 0
                                  ? stage.weight_bytes
                                  : drawn.cost.Of(stage.stage).always_active_bytes() +
                                        worker.process_bytes + drawn.options.step_memory.layers;
      EXPECT_LE(weights + stage.kv_bytes + stage.expert_bytes, worker.memory_budget_bytes);
    }
  }
  // The cases are worth the name.
  EXPECT_GT(planned, 400);
  EXPECT_GT(several, 200);
  EXPECT_GT(offloading, 100);
  EXPECT_GT(refused, 30);
}

/// Layers by worker's number; 0: spare.
std::vector<int> LayersOf(const PipelinePlan& plan, size_t num_workers) {
  std::vector<int> layers(num_workers, 0);
  for (const StagePlan& stage : plan.stages) {
    layers[Number(stage.worker) - 1] = stage.stage.num_layers();
  }
  return layers;
}

TEST(TimedPlan, ASlowBoxWithMuchMemoryGetsFewLayersForBulk) {
  const ModelCost cost = Layers(10);
  std::vector<PlannerWorker> workers = {MakeWorker(1, 2000 * kMiB, BoxOfRates(5, 1)),
                                        MakeWorker(2, 200 * kMiB, BoxOfRates(45, 1))};
  for (PlannerWorker& worker : workers) worker.box->network = {};  // as good as free
  const auto plan = PlanStages(cost, workers, Options(PlanAim::kBulk));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(LayersOf(*plan, 2), ::testing::ElementsAre(1, 9));
  // By memory it would be the other way round.
  workers[0].box.reset();
  const auto by_memory = PlanStages(cost, workers, Options(PlanAim::kBulk));
  ASSERT_TRUE(by_memory.ok()) << by_memory.status();
  EXPECT_FALSE(by_memory->forecast.has_value());
  EXPECT_THAT(LayersOf(*by_memory, 2), ::testing::ElementsAre(9, 1));
}

TEST(TimedPlan, WhoWouldMakeAllSlowerStaysSpare) {
  std::vector<PlannerWorker> workers = {MakeWorker(1, 2000 * kMiB, BoxOfRates(40, 1)),
                                        MakeWorker(2, 2000 * kMiB, BoxOfRates(0.1, 1))};
  for (const PlanAim aim : {PlanAim::kBulk, PlanAim::kInteractive}) {
    const auto plan = PlanStages(Layers(8), workers, Options(aim));
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_THAT(LayersOf(*plan, 2), ::testing::ElementsAre(8, 0));
  }
  // Unless there is no other way.
  workers[0].memory_budget_bytes = 100 * kMiB;
  const auto plan = PlanStages(Layers(8), workers, Options(PlanAim::kBulk));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(LayersOf(*plan, 2), ::testing::ElementsAre(5, 3));
}

TEST(TimedPlan, TheAimDecides) {
  std::vector<PlannerWorker> workers;
  for (uint32_t id = 1; id <= 3; ++id) {
    workers.push_back(MakeWorker(id, 2000 * kMiB, BoxOfRates(10, 1)));
  }
  const auto bulk = PlanStages(Layers(9), workers, Options(PlanAim::kBulk));
  const auto alone = PlanStages(Layers(9), workers, Options(PlanAim::kInteractive));
  ASSERT_TRUE(bulk.ok() && alone.ok());
  EXPECT_EQ(bulk->stages.size(), 3u);
  EXPECT_EQ(alone->stages.size(), 1u);
  EXPECT_EQ(bulk->forecast->jobs, 8);
  EXPECT_GT(bulk->forecast->tokens_per_second, alone->forecast->tokens_per_second);
  EXPECT_GT(alone->forecast->tokens_per_second_alone, bulk->forecast->tokens_per_second_alone);
}

TEST(TimedPlan, ThePresentPlanStaysUnlessAnotherIsWorthIt) {
  const ModelCost cost = Layers(40);
  std::vector<PlannerWorker> workers = {MakeWorker(1, 2000 * kMiB, BoxOfRates(20, 1)),
                                        MakeWorker(2, 2000 * kMiB, BoxOfRates(20, 1))};
  PlannerOptions options = Options(PlanAim::kBulk);
  const auto first = PlanStages(cost, workers, options);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_THAT(LayersOf(*first, 2), ::testing::ElementsAre(20, 20));
  // A little slower at the next measurement: alone that gives another split.
  workers[1].box = BoxOfRates(19, 1);
  const auto anew = PlanStages(cost, workers, options);
  ASSERT_TRUE(anew.ok()) << anew.status();
  EXPECT_NE(LayersOf(*anew, 2), LayersOf(*first, 2));
  options.present = first->stages;
  const auto kept = PlanStages(cost, workers, options);
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(LayersOf(*kept, 2), LayersOf(*first, 2));
  EXPECT_LT(kept->forecast->tokens_per_second, anew->forecast->tokens_per_second);
  // Half as fast is worth a change.
  workers[1].box = BoxOfRates(10, 1);
  const auto moved = PlanStages(cost, workers, options);
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_GT(LayersOf(*moved, 2)[0], 24);
  // And what does not fit any more does not stay.
  workers[1].box = BoxOfRates(20, 1);
  workers[1].memory_budget_bytes = 300 * kMiB;
  const auto forced = PlanStages(cost, workers, options);
  ASSERT_TRUE(forced.ok()) << forced.status();
  EXPECT_LT(LayersOf(*forced, 2)[1], 20);
}

TEST(TimedPlan, ManyWorkersJobsAndLayersTakeNoLongTime) {
  std::mt19937 random(6);
  std::uniform_real_distribution<double> rate(10, 40);
  ModelCost cost = Layers(61);
  for (size_t i = 0; i < 3; ++i) cost.layers[i] = SmallModelLayer(9 * kMiB, 0);
  PlannerOptions options = Options(PlanAim::kBulk);
  options.kv_tokens = 64 * options.context_tokens;
  // The most in any order, and in that of joining.
  for (const uint32_t count : {12u, 24u}) {
    std::vector<PlannerWorker> workers;
    for (uint32_t id = 1; id <= count; ++id) {
      workers.push_back(MakeWorker(id, 400 * kMiB, BoxOfRates(rate(random), 1)));
    }
    const absl::Time begun = absl::Now();
    const auto plan = PlanStages(cost, workers, options);
    const double seconds = absl::ToDoubleSeconds(absl::Now() - begun);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_TRUE(plan->forecast.has_value());
    RecordProperty(absl::StrCat("seconds_of_", count), absl::StrCat(seconds));
    EXPECT_LT(seconds, 10) << count << " workers: tenths of a second where nothing else runs";
  }
}

TEST(TimedPlan, ManyWorkersThatDifferKeepTheirOrder) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> noise(0.97, 1.03);
  std::vector<PlannerWorker> workers;
  for (uint32_t id = 1; id <= 24; ++id) {
    const bool is_fast = id % 2 == 0;
    workers.push_back(
        MakeWorker(id, 400 * kMiB, BoxOfRates((is_fast ? 40 : 10) * noise(random), 1)));
    workers.back().box->network = {};
  }
  const auto plan = PlanStages(Layers(60), workers, Options(PlanAim::kBulk));
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_TRUE(plan->forecast.has_value());
  int next = 0;
  int fast = 0;
  uint32_t last = 0;
  for (const StagePlan& stage : plan->stages) {
    EXPECT_EQ(stage.stage.first_layer, next);
    next = stage.stage.end_layer;
    EXPECT_GT(Number(stage.worker), last);
    last = Number(stage.worker);
    if (Number(stage.worker) % 2 == 0) fast += stage.stage.num_layers();
  }
  EXPECT_EQ(next, 60);
  EXPECT_GT(fast, 40);
  // Too many: by memory.
  while (workers.size() < 40) {
    workers.push_back(workers[workers.size() - 24]);
    workers.back().id = WorkerId(static_cast<uint32_t>(workers.size()));
    workers.back().memory_budget_bytes += static_cast<int64_t>(workers.size());
  }
  const auto by_memory = PlanStages(Layers(60), workers, Options(PlanAim::kBulk));
  ASSERT_TRUE(by_memory.ok()) << by_memory.status();
  EXPECT_FALSE(by_memory->forecast.has_value());
}

}  // namespace
}  // namespace caravan
