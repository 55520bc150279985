#include "cluster/planner.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "cluster/stage_needs.h"
#include "cluster/stage_split.h"
#include "cluster/worker_times.h"
#include "kernels/kv_rows.h"

namespace caravan {
namespace {

// A split that differs from the present one is worth moving weights and caches for from here on.
// What boxes were measured at differs by a few hundredths from one time to the next, and what a
// table foretells by more.
constexpr double kWorthwhileGain = 1.05;

/// Each worker has a stage, in order; what a hop costs does not count.
SplitRules InOrder(int num_workers) {
  const auto size = static_cast<size_t>(num_workers);
  SplitRules rules;
  rules.counts.assign(size, 1);
  rules.in_order = true;
  rules.networks.assign(size, 0);
  rules.hops = {{0}};
  rules.returns = {0};
  rules.num_stages = num_workers;
  return rules;
}

std::vector<int> EndsOf(const Split& split) {
  std::vector<int> ends;
  for (const PickedStage& stage : split.stages) ends.push_back(stage.end);
  return ends;
}

/// Ends of the stages on exactly these workers.
std::optional<std::vector<int>> SplitOver(const StageNeeds& needs) {
  const auto share = [&](int w, int begin, int end) {
    if (!needs.Fits(w, begin, end)) return kImpossible;
    return static_cast<double>(needs.stages().Of(begin, end).weight_bytes) /
           static_cast<double>(needs.worker(w).memory_budget_bytes);
  };
  const SplitRules rules = InOrder(needs.num_workers());
  const int num_layers = needs.stages().num_layers();
  const std::optional<double> largest =
      LeastMost(StageCosts(needs.num_workers(), num_layers, share), rules);
  if (!largest.has_value()) return std::nullopt;
  const auto squared = [&](int w, int begin, int end) {
    const double s = share(w, begin, end);
    return s <= *largest ? s * s : kImpossible;
  };
  return EndsOf(*CheapestSplit(StageCosts(needs.num_workers(), num_layers, squared), rules));
}

using WorkerList = std::vector<const PlannerWorker*>;

/// The lists of workers to try, in order: all (but those that find no layer), then without the
/// smallest, and so on.
std::vector<WorkerList> ListsToTry(absl::Span<const PlannerWorker> workers, int num_layers) {
  WorkerList left;
  for (const PlannerWorker& worker : workers) left.push_back(&worker);
  std::vector<WorkerList> lists;
  while (!left.empty()) {
    const auto end = left.begin() + std::min(std::ssize(left), std::ptrdiff_t{num_layers});
    lists.emplace_back(left.begin(), end);
    left.erase(
        std::min_element(left.begin(), end, [](const PlannerWorker* a, const PlannerWorker* b) {
          // Of equal ones the last counts as smaller.
          if (a->memory_budget_bytes == b->memory_budget_bytes) return a > b;
          return a->memory_budget_bytes < b->memory_budget_bytes;
        }));
  }
  return lists;
}

struct PlannedSplit {
  WorkerSplit split;
  bool may_offload = false;
};

std::optional<PlannedSplit> FindSplit(const PossibleStages& stages, const PlannerOptions& options,
                                      const std::vector<WorkerList>& lists, bool may_offload) {
  for (const WorkerList& list : lists) {
    std::optional<std::vector<int>> ends =
        SplitOver(StageNeeds(stages, options, list, may_offload));
    if (ends.has_value()) return PlannedSplit{{list, *std::move(ends)}, may_offload};
  }
  return std::nullopt;
}

/// Why no split fits where everything must be in memory, in numbers.
std::string WhyNotResident(const PossibleStages& stages, absl::Span<const PlannerWorker> workers,
                           int64_t context_tokens) {
  const int n = stages.num_layers();
  const LayerCost& whole = stages.Of(0, n);
  int64_t offered = 0;
  DType smallest_kv = workers.front().kv_dtype;
  const PlannerWorker* largest = &workers.front();
  for (const PlannerWorker& worker : workers) {
    offered += worker.memory_budget_bytes;
    if (worker.memory_budget_bytes > largest->memory_budget_bytes) largest = &worker;
    if (KvBytes(worker.kv_dtype, context_tokens) < KvBytes(smallest_kv, context_tokens)) {
      smallest_kv = worker.kv_dtype;
    }
  }
  const int64_t kv = KvCacheBytes(whole, smallest_kv, context_tokens);
  const std::string needs =
      absl::StrCat("the model needs ", FormatByteSize(whole.weight_bytes), " for weights and ",
                   FormatByteSize(kv), " for the KV cache of ", context_tokens, " tokens, ");
  const std::string offer =
      absl::StrCat(workers.size() == 1 ? "the worker offers "
                                       : absl::StrCat("the ", workers.size(), " workers offer "),
                   FormatByteSize(offered));
  if (offered < whole.weight_bytes + kv) return absl::StrCat(needs, "but ", offer);
  for (int layer = 0; layer < n; ++layer) {
    const LayerCost& cost = stages.Of(layer, layer + 1);
    const int64_t bytes = cost.weight_bytes + KvCacheBytes(cost, smallest_kv, context_tokens);
    if (bytes <= largest->memory_budget_bytes) continue;
    return absl::StrCat(needs, "and ", offer, ", but ",
                        DescribeStage(stages.Spec(layer, layer + 1)), " alone needs ",
                        FormatByteSize(bytes), " and the largest worker, ", largest->name, ", has ",
                        FormatByteSize(largest->memory_budget_bytes));
  }
  return absl::StrCat(needs, "and ", offer, ", but no split into whole layers fits every worker");
}

/// The same where experts may stay on disks, or cards hold steps too: of the split that comes
/// closest, the stage that is farthest from fitting.
std::string WhyNoStageFits(const PossibleStages& stages, const PlannerOptions& options,
                           const std::vector<WorkerList>& lists, bool may_offload) {
  double closest = kImpossible;
  std::string why;
  for (const WorkerList& list : lists) {
    const StageNeeds needs(stages, options, list, may_offload);
    const auto excess = [&](int w, int begin, int end) {
      return static_cast<double>(needs.Of(w, begin, end).total()) /
             static_cast<double>(needs.worker(w).memory_budget_bytes);
    };
    const StageCosts costs(needs.num_workers(), stages.num_layers(), excess);
    SplitRules rules = InOrder(needs.num_workers());
    rules.most = *LeastMost(costs, rules);
    const std::vector<int> ends = EndsOf(*CheapestSplit(costs, rules));
    int worst = 0;
    int worst_begin = 0;
    for (int w = 1; w < needs.num_workers(); ++w) {
      if (excess(w, ends[w - 1], ends[w]) > excess(worst, worst_begin, ends[worst])) {
        worst = w;
        worst_begin = ends[w - 1];
      }
    }
    if (excess(worst, worst_begin, ends[worst]) >= closest) continue;
    closest = excess(worst, worst_begin, ends[worst]);
    const StageNeed need = needs.Of(worst, worst_begin, ends[worst]);
    const std::string kv =
        absl::StrCat(FormatByteSize(need.kv), " for the KV cache of one sequence of ",
                     options.context_tokens, " tokens");
    const std::string parts =
        need.offloads
            ? absl::StrCat(FormatByteSize(need.weights), " for its always-active weights, ", kv,
                           ", ", FormatByteSize(need.slots), " for ",
                           stages.Of(worst_begin, ends[worst]).least_expert_slots(),
                           " experts and ", FormatByteSize(need.beside),
                           " for steps and the process")
        : need.beside > 0 ? absl::StrCat(FormatByteSize(need.weights), " for its weights, ", kv,
                                         " and ", FormatByteSize(need.beside), " for steps")
                          : absl::StrCat(FormatByteSize(need.weights), " for its weights and ", kv);
    why = absl::StrCat("no split fits: stage ", worst + 1, " of ", needs.num_workers(), " (",
                       DescribeStage(stages.Spec(worst_begin, ends[worst])), ") needs ",
                       FormatByteSize(need.total()), " of memory, ", parts, "; ",
                       needs.worker(worst).name, " has ",
                       FormatByteSize(needs.worker(worst).memory_budget_bytes));
  }
  return why;
}

absl::Status DoesNotFit(const PossibleStages& stages, absl::Span<const PlannerWorker> workers,
                        const PlannerOptions& options, const std::vector<WorkerList>& lists) {
  const LayerCost& whole = stages.Of(0, stages.num_layers());
  const bool some_offload = std::any_of(workers.begin(), workers.end(),
                                        [](const PlannerWorker& w) { return w.offloads; });
  if (some_offload && whole.can_offload()) {
    return absl::FailedPreconditionError(
        WhyNoStageFits(stages, options, lists, /*may_offload=*/true));
  }
  const bool some_cards =
      std::any_of(workers.begin(), workers.end(), [](const PlannerWorker& w) { return w.on_card; });
  const bool could_if_packed = some_offload && whole.num_experts > 0;
  return absl::FailedPreconditionError(absl::StrCat(
      some_cards ? WhyNoStageFits(stages, options, lists, /*may_offload=*/false)
                 : WhyNotResident(stages, workers, options.context_tokens),
      could_if_packed ? "; only a packed model's experts (caravan pack) may stay on disks" : ""));
}

/// Shares each worker's budget out.
PipelinePlan MakePlan(const PossibleStages& stages, const PlannerOptions& options,
                      const PlannedSplit& split) {
  const StageNeeds needs(stages, options, split.split.workers, split.may_offload);
  const std::vector<int>& ends = split.split.ends;
  const auto begin_of = [&](int w) { return w == 0 ? 0 : ends[static_cast<size_t>(w) - 1]; };
  int64_t pipeline_tokens = kMaxTokens;  // that every stage caches
  for (int w = 0; w < needs.num_workers(); ++w) {
    pipeline_tokens = std::min(
        pipeline_tokens, needs.RoomFor(w, begin_of(w), ends[static_cast<size_t>(w)]).kv_tokens);
  }
  pipeline_tokens = std::max(pipeline_tokens, options.context_tokens);
  PipelinePlan plan;
  plan.version = options.version;
  for (int w = 0; w < needs.num_workers(); ++w) {
    const int begin = begin_of(w);
    const int end = ends[static_cast<size_t>(w)];
    const StageRoom room = needs.RoomFor(w, begin, end, pipeline_tokens);
    const LayerCost& cost = stages.Of(begin, end);
    StagePlan& stage = plan.stages.emplace_back();
    stage.worker = needs.worker(w).id;
    stage.stage = stages.Spec(begin, end);
    stage.weight_bytes = cost.weight_bytes;
    stage.kv_bytes = room.kv_bytes;
    stage.kv_disk_bytes = room.kv_disk_bytes;
    stage.kv_tokens = room.kv_tokens;
    stage.expert_bytes = room.expert_slots * cost.expert_slot_bytes;
  }
  return plan;
}

/// options.present as a split of these workers; nullopt: there is none, or it is not possible now.
std::optional<PlannedSplit> PresentSplit(const PossibleStages& stages,
                                         absl::Span<const PlannerWorker> workers,
                                         const PlannerOptions& options) {
  PlannedSplit present;
  present.may_offload = true;
  int next = 0;
  for (const StagePlan& stage : options.present) {
    const auto worker =
        std::find_if(workers.begin(), workers.end(),
                     [&](const PlannerWorker& each) { return each.id == stage.worker; });
    if (worker == workers.end() || stage.stage.first_layer != next) return std::nullopt;
    next = stage.stage.end_layer;
    present.split.workers.push_back(&*worker);
    present.split.ends.push_back(next);
  }
  if (next != stages.num_layers()) return std::nullopt;
  const StageNeeds needs(stages, options, present.split.workers, present.may_offload);
  for (int w = 0, begin = 0; w < needs.num_workers(); begin = present.split.ends[w++]) {
    if (!needs.Fits(w, begin, present.split.ends[w])) return std::nullopt;
  }
  return present;
}

/// The plan that is best by time, or the present one where that is as good as the best.
std::optional<PipelinePlan> PlanByTime(const PossibleStages& stages, const ModelCost& cost,
                                       absl::Span<const PlannerWorker> workers,
                                       const PlannerOptions& options) {
  std::optional<WorkerSplit> fastest = SplitByTime(stages, workers, options);
  if (!fastest.has_value()) return std::nullopt;
  const auto plan_of = [&](const PlannedSplit& split) {
    PipelinePlan plan = MakePlan(stages, options, split);
    plan.forecast = ForetellPlan(cost, plan, split.split.workers, options);
    return plan;
  };
  const auto rate_of = [&](const PipelinePlan& plan) {
    return options.aim == PlanAim::kBulk ? plan.forecast->tokens_per_second
                                         : plan.forecast->tokens_per_second_alone;
  };
  PipelinePlan plan = plan_of({*std::move(fastest), /*may_offload=*/true});
  const std::optional<PlannedSplit> present_split = PresentSplit(stages, workers, options);
  if (!present_split.has_value()) return plan;
  PipelinePlan present = plan_of(*present_split);
  return rate_of(plan) < kWorthwhileGain * rate_of(present) ? present : plan;
}

}  // namespace

absl::StatusOr<PipelinePlan> PlanStages(const ModelCost& cost,
                                        absl::Span<const PlannerWorker> workers,
                                        const PlannerOptions& options) {
  if (cost.layers.empty()) return absl::InvalidArgumentError("the model has no layers");
  for (const int64_t tokens : {options.context_tokens, options.kv_tokens}) {
    if (tokens >= 0 && tokens <= kMaxTokens) continue;
    return absl::InvalidArgumentError(absl::StrCat("a KV cache of ", tokens, " tokens cannot be"));
  }
  if (workers.empty()) return absl::FailedPreconditionError("there are no workers");
  for (const PlannerWorker& worker : workers) {
    if (worker.memory_budget_bytes > 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("worker ", worker.name, " has no memory"));
  }
  const PossibleStages stages(cost);
  std::vector<PlannerWorker> timed(workers.begin(), workers.end());
  if (options.present_by_time) {
    std::erase_if(timed, [](const PlannerWorker& worker) { return !worker.box.has_value(); });
  }
  if (!timed.empty() && CanPlanByTime(timed, options)) {
    std::optional<PipelinePlan> plan = PlanByTime(stages, cost, timed, options);
    if (plan.has_value()) return *std::move(plan);
  }
  const std::vector<WorkerList> lists = ListsToTry(workers, stages.num_layers());
  std::optional<PlannedSplit> split = FindSplit(stages, options, lists, /*may_offload=*/false);
  if (!split.has_value()) split = FindSplit(stages, options, lists, /*may_offload=*/true);
  if (!split.has_value()) return DoesNotFit(stages, workers, options, lists);
  return MakePlan(stages, options, *split);
}

}  // namespace caravan
