#include "cluster/worker_times.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "base/check.h"
#include "cluster/fastest_split.h"
#include "cluster/step_time.h"

namespace caravan {
namespace {

// Of the search: some tenths of a second, for which the coordinator does nothing else. Twelve
// workers that all differ with 35 layers, eleven with 70.
constexpr double kMostStates = 1.5e5;
// Workers are compared two by two, and again for each that is put with another.
constexpr size_t kMostWorkers = 256;

// Between workers one of which has what the other has not: farther than any that have it.
constexpr double kUnlike = 100;

/// As many longest sequences as the KV caches are to hold.
int64_t JobsOf(const PlannerOptions& options) {
  return std::max<int64_t>(1, options.kv_tokens / std::max<int64_t>(1, options.context_tokens));
}

/// Jobs of which all decode.
DecodeLoad LoadOf(const PlannerWorker& worker, const PlannerOptions& options, int64_t jobs) {
  return {.jobs = jobs,
          .context_tokens = std::max<int64_t>(1, options.context_tokens),
          .kv_dtype = worker.kv_dtype};
}

/// Of the worker's box what the stage has: room for what is always active, the load's KV caches and
/// so many experts. `box` is the worker's, and changed.
void GiveRoom(const PlannerWorker& worker, const LayerCost& stage, int64_t expert_slots,
              const DecodeLoad& load, Box& box) {
  const int64_t expert = stage.num_experts > 0 ? stage.expert_bytes / stage.num_experts : 0;
  const int64_t bytes = stage.always_active_bytes() +
                        KvCacheBytes(stage, load.kv_dtype, load.jobs * load.context_tokens) +
                        expert_slots * expert;
  box.disk.bytes = stage.weight_bytes;  // where they are read from, they lie
  if (worker.on_card) {
    box.card.count = 1;
    box.card.bytes = bytes;
    // For experts that the card has no room for.
    box.memory.bytes = expert_slots < stage.num_experts ? worker.box->memory.bytes : 0;
  } else {
    box.card = {};
    box.memory.bytes = bytes;
  }
}

/// All by which workers can differ to the planner.
std::vector<double> FiguresOf(const PlannerWorker& worker) {
  const Box& box = *worker.box;
  std::vector<double> figures = {
      box.cpu.multiply_adds, box.cpu.attention_multiply_adds, box.memory.read_bytes,
      box.disk.read_bytes, box.network.bytes, box.network.latency_seconds,
      static_cast<double>(worker.memory_budget_bytes), static_cast<double>(worker.process_bytes),
      static_cast<double>(worker.kv_disk_bytes),
      // One has it, or the other: kUnlike.
      worker.offloads ? 1.0 : 0.0, worker.has_nccl ? 1.0 : 0.0,
      worker.kv_dtype == DType::kF32 ? 1.0 : 0.0, worker.kv_dtype == DType::kF16 ? 1.0 : 0.0,
      worker.on_card ? 1.0 : 0.0};
  if (worker.on_card) {
    figures.insert(figures.end(), {box.card.read_bytes, box.card.multiply_adds, box.card.pcie_bytes,
                                   static_cast<double>(box.memory.bytes)});
  } else {
    figures.resize(figures.size() + 4, 0);
  }
  return figures;
}

/// How far apart two workers are: of all figures the largest ratio's logarithm.
double Distance(const std::vector<double>& a, const std::vector<double>& b) {
  double distance = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    const bool is_missing = a[i] <= 0 || b[i] <= 0;
    distance = std::max(distance, is_missing ? kUnlike : std::abs(std::log(a[i] / b[i])));
  }
  return distance;
}

/// Workers that are planned as equal ones.
struct Group {
  std::vector<int> members;   // in order of joining
  std::vector<int> distinct;  // of these, one of each that are equal
  Box network;                // of which only the network counts: the slowest of theirs
};

std::vector<BoxKind> KindsOf(const std::vector<Group>& groups) {
  std::vector<BoxKind> kinds;
  for (const Group& group : groups) {
    kinds.push_back({&group.network, static_cast<int>(group.members.size())});
  }
  return kinds;
}

/// Equal workers together; then, until the search can go through all that is left, those that are
/// nearest to each other.
std::vector<Group> GroupWorkers(absl::Span<const PlannerWorker> workers, int num_layers) {
  std::vector<Group> groups;
  std::vector<std::vector<double>> figures;
  for (size_t w = 0; w < workers.size(); ++w) {
    figures.push_back(FiguresOf(workers[w]));
    Group& group = groups.emplace_back();
    group.members = group.distinct = {static_cast<int>(w)};
    group.network.network = workers[w].box->network;
  }
  std::vector<std::vector<double>> apart(groups.size(), std::vector<double>(groups.size()));
  for (size_t a = 0; a < groups.size(); ++a) {
    for (size_t b = 0; b < groups.size(); ++b) apart[a][b] = Distance(figures[a], figures[b]);
  }
  while (groups.size() > 1) {
    size_t first = 0;
    size_t second = 1;
    for (size_t a = 0; a < groups.size(); ++a) {
      for (size_t b = a + 1; b < groups.size(); ++b) {
        if (apart[a][b] < apart[first][second]) std::tie(first, second) = std::pair(a, b);
      }
    }
    const bool are_equal = apart[first][second] == 0;
    if (!are_equal && FastestSplitStates(num_layers, KindsOf(groups)) <= kMostStates) break;
    Group& into = groups[first];
    const Group& from = groups[second];
    into.members.insert(into.members.end(), from.members.begin(), from.members.end());
    std::sort(into.members.begin(), into.members.end());
    if (!are_equal) {
      into.distinct.insert(into.distinct.end(), from.distinct.begin(), from.distinct.end());
    }
    Box::Network& network = into.network.network;
    network.bytes = std::min(network.bytes, from.network.network.bytes);
    network.latency_seconds =
        std::max(network.latency_seconds, from.network.network.latency_seconds);
    for (size_t other = 0; other < groups.size(); ++other) {
      apart[first][other] = apart[other][first] =
          std::max(apart[first][other], apart[second][other]);
    }
    groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(second));
    apart.erase(apart.begin() + static_cast<std::ptrdiff_t>(second));
    for (std::vector<double>& row : apart) {
      row.erase(row.begin() + static_cast<std::ptrdiff_t>(second));
    }
  }
  return groups;
}

/// What stages take on each worker.
class WorkerTimes {
 public:
  WorkerTimes(const PossibleStages& stages, absl::Span<const PlannerWorker> workers,
              const PlannerOptions& options)
      : options_(options),
        list_(Pointers(workers)),
        needs_(stages, options, list_, /*may_offload=*/true, StageNeeds::Order::kAny) {
    for (const PlannerWorker& worker : workers) {
      // Without names and sources, which cost more to copy than to compute with.
      Box& box = boxes_.emplace_back(*worker.box);
      static_cast<Box::Part&>(box.cpu) = static_cast<Box::Part&>(box.memory) =
          static_cast<Box::Part&>(box.disk) = static_cast<Box::Part&>(box.card) = {};
    }
  }

  /// Of a micro-batch of `rows` while `jobs` decode, for all of whose KV caches there is room.
  double Seconds(int w, int begin, int end, int64_t jobs, double rows) {
    if (!needs_.Fits(w, begin, end)) return kImpossible;
    const PlannerWorker& worker = needs_.worker(w);
    const DecodeLoad load = LoadOf(worker, options_, jobs);
    const StageRoom room = needs_.RoomFor(w, begin, end);
    if (room.kv_tokens < jobs * options_.context_tokens) return kImpossible;
    const LayerCost& stage = needs_.stages().Of(begin, end);
    const bool offloads = needs_.Of(w, begin, end).offloads;
    Box& box = boxes_[static_cast<size_t>(w)];
    GiveRoom(worker, stage, offloads ? room.expert_slots : stage.num_experts, load, box);
    const absl::StatusOr<StageTime> time = PredictStage(*options_.config, stage, box, load, rows);
    CARAVAN_CHECK(time.ok());
    return time->seconds;
  }

 private:
  static std::vector<const PlannerWorker*> Pointers(absl::Span<const PlannerWorker> workers) {
    std::vector<const PlannerWorker*> pointers;
    for (const PlannerWorker& worker : workers) pointers.push_back(&worker);
    return pointers;
  }

  const PlannerOptions& options_;
  const std::vector<const PlannerWorker*> list_;
  const StageNeeds needs_;
  std::vector<Box> boxes_;
};

}  // namespace

bool CanPlanByTime(absl::Span<const PlannerWorker> workers, const PlannerOptions& options) {
  return options.config != nullptr && workers.size() <= kMostWorkers &&
         std::all_of(workers.begin(), workers.end(),
                     [](const PlannerWorker& worker) { return worker.box.has_value(); });
}

std::optional<WorkerSplit> SplitByTime(const PossibleStages& stages,
                                       absl::Span<const PlannerWorker> workers,
                                       const PlannerOptions& options) {
  const int num_layers = stages.num_layers();
  const std::vector<Group> groups = GroupWorkers(workers, num_layers);
  const std::vector<BoxKind> kinds = KindsOf(groups);
  WorkerTimes times(stages, workers, options);
  std::optional<Split> best;
  double rate = 0;  // tokens/s of the best
  const bool alone = options.aim == PlanAim::kInteractive;
  for (int64_t jobs = alone ? 1 : JobsOf(options); jobs >= 1; jobs /= 2) {
    const auto seconds = [&](int kind, int begin, int end, double rows) {
      double longest = 0;
      for (const int w : groups[static_cast<size_t>(kind)].distinct) {
        longest = std::max(longest, times.Seconds(w, begin, end, jobs, rows));
      }
      return longest;
    };
    const double below = rate > 0 ? static_cast<double>(jobs) / rate : kImpossible;
    std::optional<Split> split = FastestSplit(*options.config, num_layers, kinds,
                                              {.jobs = jobs, .context_tokens = 1}, seconds, below);
    if (!split.has_value()) continue;
    rate = static_cast<double>(jobs) / split->cost;
    best = std::move(split);
  }
  if (!best.has_value()) return std::nullopt;
  WorkerSplit chosen;
  std::vector<size_t> used(groups.size(), 0);
  for (const PickedStage& stage : best->stages) {
    const auto kind = static_cast<size_t>(stage.kind);
    const int w = groups[kind].members[used[kind]++];
    chosen.workers.push_back(&workers[static_cast<size_t>(w)]);
    chosen.ends.push_back(stage.end);
  }
  return chosen;
}

PlanForecast ForetellPlan(const ModelCost& cost, const PipelinePlan& plan,
                          absl::Span<const PlannerWorker* const> workers,
                          const PlannerOptions& options) {
  CARAVAN_CHECK(plan.stages.size() == workers.size());
  // As many jobs as the stage that caches fewest tokens has room for.
  int64_t jobs = JobsOf(options);
  for (size_t i = 0; i < workers.size(); ++i) {
    jobs = std::min(jobs, plan.stages[i].kv_tokens / std::max<int64_t>(1, options.context_tokens));
  }
  PlanForecast forecast;
  forecast.jobs = std::max<int64_t>(1, jobs);
  for (const int64_t decoding : {forecast.jobs, int64_t{1}}) {
    std::vector<Box> boxes(workers.size());
    std::vector<BoxStage> stages;
    for (size_t i = 0; i < workers.size(); ++i) {
      const StagePlan& stage = plan.stages[i];
      const LayerCost of_stage = cost.Of(stage.stage);
      const int64_t slots = stage.expert_bytes > 0 ? stage.expert_bytes / of_stage.expert_slot_bytes
                                                   : of_stage.num_experts;
      boxes[i] = *workers[i]->box;
      GiveRoom(*workers[i], of_stage, slots, LoadOf(*workers[i], options, decoding), boxes[i]);
      stages.push_back({&boxes[i], stage.stage, workers[i]->kv_dtype});
    }
    const absl::StatusOr<PipelineTime> time =
        PredictPipeline(*options.config, cost, stages, LoadOf(*workers.front(), options, decoding));
    CARAVAN_CHECK(time.ok());
    if (decoding == 1) forecast.tokens_per_second_alone = time->tokens_per_second;
    if (decoding != forecast.jobs) continue;
    forecast.tokens_per_second = time->tokens_per_second;
    const auto slowest = std::max_element(
        time->stages.begin(), time->stages.end(),
        [](const StageTime& a, const StageTime& b) { return a.busy_seconds() < b.busy_seconds(); });
    forecast.slowest_stage = static_cast<int>(slowest - time->stages.begin());
    forecast.bottleneck = slowest->bottleneck;
  }
  return forecast;
}

}  // namespace caravan
