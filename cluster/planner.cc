#include "cluster/planner.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/int_math.h"
#include "cluster/kv_tiers.h"
#include "kernels/kv_rows.h"

namespace caravan {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 40;  // past any memory; times bytes fits 63 bits
constexpr double kImpossible = std::numeric_limits<double>::infinity();

/// Of what an offloading stage's worker has beyond the stage's least, the part that may go to the
/// KV cache as far as kv_tokens ask for it: a half. Slots make a lone stream faster, since each
/// expert that is in memory need not be read; KV cache makes many streams faster, since more of
/// them share each read. Neither is known to matter less, and the default kv_tokens of eight
/// longest sequences would leave nothing to slots. Who wants more slots asks for fewer kv_tokens.
constexpr int64_t kKvShareDivisor = 2;

/// What all possible stages cost.
class StageCosts {
 public:
  explicit StageCosts(const ModelCost& cost)
      : num_layers_(static_cast<int>(cost.layers.size())), drafts_(cost.mtp.has_value()) {
    for (int begin = 0; begin < num_layers_; ++begin) {
      LayerCost layers;
      for (int end = begin + 1; end <= num_layers_; ++end) {
        layers += cost.layers[static_cast<size_t>(end - 1)];
        LayerCost sum = layers;
        // What no layer has: Of(no layers) is that alone.
        StageSpec ends = Stage(begin, end);
        ends.end_layer = ends.first_layer;
        sum += cost.Of(ends);
        costs_.push_back(sum);
      }
    }
  }

  int num_layers() const { return num_layers_; }

  /// The stage with layers [begin, end).
  StageSpec Stage(int begin, int end) const {
    const bool is_last = end == num_layers_;
    return {begin, end, begin == 0, is_last, is_last && drafts_};
  }
  const LayerCost& Of(int begin, int end) const {
    // Stages that begin at 0, then those at 1, ...
    const int64_t before = int64_t{begin} * num_layers_ - int64_t{begin} * (begin - 1) / 2;
    return costs_[static_cast<size_t>(before + end - begin - 1)];
  }

 private:
  const int num_layers_;
  const bool drafts_;
  std::vector<LayerCost> costs_;
};

int64_t KvCacheBytes(const LayerCost& stage, DType dtype, int64_t tokens) {
  return KvBytes(dtype, stage.kv_values_per_token * tokens);
}

/// How many tokens so many bytes of KV cache hold.
int64_t KvTokens(const LayerCost& stage, DType dtype, int64_t bytes) {
  const int64_t token_bytes = KvBytes(dtype, stage.kv_values_per_token);
  return token_bytes == 0 ? kMaxTokens : bytes / token_bytes;
}

KvBlockShape KvShape(const StagePlan& stage, const LayerCost& cost, DType dtype) {
  const int num_layers = stage.stage.num_kv_layers();
  return {num_layers, kKvBlockTokens * KvBytes(dtype, cost.kv_values_per_token / num_layers)};
}

/// Gives the stage as little of the worker's disk as brings its KV cache to `tokens`, or as close
/// as it can be. Returns how many tokens it holds.
int64_t TakeKvDisk(const LayerCost& cost, const PlannerWorker& worker, int64_t tokens,
                   StagePlan& stage) {
  const int64_t in_memory = KvTokens(cost, worker.kv_dtype, stage.kv_bytes);
  stage.kv_disk_bytes = 0;
  if (in_memory >= tokens || worker.kv_disk_bytes == 0) return in_memory;
  const KvBlockShape shape = KvShape(stage, cost, worker.kv_dtype);
  stage.kv_disk_bytes =
      KvDiskFor(shape, stage.kv_bytes, worker.kv_disk_bytes, CeilDiv(tokens, kKvBlockTokens));
  if (stage.kv_disk_bytes == 0) return in_memory;
  return SplitKvBlocks(shape, stage.kv_bytes, stage.kv_disk_bytes).blocks() * kKvBlockTokens;
}

/// The least memory that a stage needs of its worker, in bytes.
struct StageNeed {
  bool offloads = false;
  int64_t weights = 0;  // all, or the always-active ones
  int64_t kv = 0;       // of one longest sequence
  int64_t slots = 0;    // of as many experts as it cannot do without
  int64_t beside = 0;   // process and steps

  int64_t total() const { return weights + kv + slots + beside; }
};

/// What stages need of some workers, each of which has one.
class Needs {
 public:
  Needs(const StageCosts& costs, const PlannerOptions& options,
        absl::Span<const PlannerWorker* const> workers, bool may_offload)
      : costs_(costs), options_(options), workers_(workers), may_offload_(may_offload) {}

  int num_workers() const { return static_cast<int>(workers_.size()); }
  const PlannerWorker& worker(int w) const { return *workers_[static_cast<size_t>(w)]; }
  const StageCosts& costs() const { return costs_; }

  StageNeed Resident(int w, int begin, int end) const {
    const LayerCost& cost = costs_.Of(begin, end);
    StageNeed need;
    need.weights = cost.weight_bytes;
    need.kv = KvCacheBytes(cost, worker(w).kv_dtype, options_.context_tokens);
    if (worker(w).on_card) need.beside = StepBytes(w, begin, end);
    return need;
  }
  /// As it would fit the worker: resident if it does, else offloading where that can be and needs
  /// less.
  StageNeed Of(int w, int begin, int end) const {
    const StageNeed resident = Resident(w, begin, end);
    const LayerCost& cost = costs_.Of(begin, end);
    if (!may_offload_ || !worker(w).offloads || !cost.can_offload() ||
        resident.total() <= worker(w).memory_budget_bytes) {
      return resident;
    }
    StageNeed need;
    need.offloads = true;
    need.weights = cost.always_active_bytes();
    need.kv = resident.kv;
    need.slots = cost.least_expert_slots() * cost.expert_slot_bytes;
    need.beside = worker(w).process_bytes + StepBytes(w, begin, end);
    return need.total() < resident.total() ? need : resident;
  }

 private:
  int64_t StepBytes(int w, int begin, int end) const {
    const StepMemory& steps = worker(w).on_card ? options_.card_step_memory : options_.step_memory;
    return steps.Of(costs_.Stage(begin, end), num_workers()) +
           (HopsByNccl(w) ? kNcclProcessBytes : 0);
  }
  /// Whether a neighbour may be joined by NCCL.
  bool HopsByNccl(int w) const {
    return worker(w).has_nccl &&
           ((w > 0 && worker(w - 1).has_nccl) || (w + 1 < num_workers() && worker(w + 1).has_nccl));
  }

  const StageCosts& costs_;
  const PlannerOptions& options_;
  const absl::Span<const PlannerWorker* const> workers_;
  const bool may_offload_;
};

/// Where each of `num_workers` stages ends, each at least one layer, such that the stages' costs
/// combine to the least; of equal ones the split that ends earlier. nullopt when every split is
/// kImpossible.
std::optional<std::vector<int>> BestSplit(
    int num_layers, int num_workers,
    absl::FunctionRef<double(int worker, int begin, int end)> stage_cost,
    absl::FunctionRef<double(double, double)> combine) {
  // best[w][begin]: the least cost of layers [begin, num_layers) on workers [w, num_workers), and
  // the end of worker w's stage that gives it.
  struct Choice {
    double cost = kImpossible;
    int end = 0;
  };
  std::vector<std::vector<Choice>> best(num_workers + 1, std::vector<Choice>(num_layers + 1));
  best[num_workers][num_layers].cost = 0;
  for (int w = num_workers - 1; w >= 0; --w) {
    for (int begin = 0; begin < num_layers; ++begin) {
      for (int end = begin + 1; end <= num_layers; ++end) {
        if (best[w + 1][end].cost == kImpossible) continue;
        const double cost = combine(stage_cost(w, begin, end), best[w + 1][end].cost);
        if (cost < best[w][begin].cost) best[w][begin] = {cost, end};
      }
    }
  }
  if (best[0][0].cost == kImpossible) return std::nullopt;
  std::vector<int> ends;
  for (int w = 0, begin = 0; w < num_workers; ++w) {
    begin = best[w][begin].end;
    ends.push_back(begin);
  }
  return ends;
}

/// Ends of the stages on exactly these workers.
std::optional<std::vector<int>> SplitOver(const Needs& needs) {
  const int num_layers = needs.costs().num_layers();
  const auto share = [&](int w, int begin, int end) {
    const int64_t budget = needs.worker(w).memory_budget_bytes;
    if (needs.Of(w, begin, end).total() > budget) return kImpossible;
    return static_cast<double>(needs.costs().Of(begin, end).weight_bytes) /
           static_cast<double>(budget);
  };
  const auto largest = BestSplit(num_layers, needs.num_workers(), share,
                                 [](double a, double b) { return std::max(a, b); });
  if (!largest.has_value()) return std::nullopt;
  double limit = 0;
  for (int w = 0, begin = 0; w < needs.num_workers(); begin = (*largest)[w++]) {
    limit = std::max(limit, share(w, begin, (*largest)[w]));
  }
  const auto squared = [&](int w, int begin, int end) {
    const double s = share(w, begin, end);
    return s <= limit ? s * s : kImpossible;
  };
  return BestSplit(num_layers, needs.num_workers(), squared,
                   [](double a, double b) { return a + b; });
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

struct Split {
  const WorkerList* workers = nullptr;
  std::vector<int> ends;
  bool may_offload = false;
};

std::optional<Split> FindSplit(const StageCosts& costs, const PlannerOptions& options,
                               const std::vector<WorkerList>& lists, bool may_offload) {
  for (const WorkerList& list : lists) {
    std::optional<std::vector<int>> ends = SplitOver(Needs(costs, options, list, may_offload));
    if (ends.has_value()) return Split{&list, *std::move(ends), may_offload};
  }
  return std::nullopt;
}

/// Why no split fits where everything must be in memory, in numbers.
std::string WhyNotResident(const StageCosts& costs, absl::Span<const PlannerWorker> workers,
                           int64_t context_tokens) {
  const int n = costs.num_layers();
  const LayerCost& whole = costs.Of(0, n);
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
    const LayerCost& cost = costs.Of(layer, layer + 1);
    const int64_t bytes = cost.weight_bytes + KvCacheBytes(cost, smallest_kv, context_tokens);
    if (bytes <= largest->memory_budget_bytes) continue;
    return absl::StrCat(needs, "and ", offer, ", but ",
                        DescribeStage(costs.Stage(layer, layer + 1)), " alone needs ",
                        FormatByteSize(bytes), " and the largest worker, ", largest->name, ", has ",
                        FormatByteSize(largest->memory_budget_bytes));
  }
  return absl::StrCat(needs, "and ", offer, ", but no split into whole layers fits every worker");
}

/// The same where experts may stay on disks, or cards hold steps too: of the split that comes
/// closest, the stage that is farthest from fitting.
std::string WhyNoStageFits(const StageCosts& costs, const PlannerOptions& options,
                           const std::vector<WorkerList>& lists, bool may_offload) {
  double closest = kImpossible;
  std::string why;
  for (const WorkerList& list : lists) {
    const Needs needs(costs, options, list, may_offload);
    const auto excess = [&](int w, int begin, int end) {
      return static_cast<double>(needs.Of(w, begin, end).total()) /
             static_cast<double>(needs.worker(w).memory_budget_bytes);
    };
    const std::vector<int> ends = *BestSplit(costs.num_layers(), needs.num_workers(), excess,
                                             [](double a, double b) { return std::max(a, b); });
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
                           costs.Of(worst_begin, ends[worst]).least_expert_slots(), " experts and ",
                           FormatByteSize(need.beside), " for steps and the process")
        : need.beside > 0 ? absl::StrCat(FormatByteSize(need.weights), " for its weights, ", kv,
                                         " and ", FormatByteSize(need.beside), " for steps")
                          : absl::StrCat(FormatByteSize(need.weights), " for its weights and ", kv);
    why = absl::StrCat("no split fits: stage ", worst + 1, " of ", needs.num_workers(), " (",
                       DescribeStage(costs.Stage(worst_begin, ends[worst])), ") needs ",
                       FormatByteSize(need.total()), " of memory, ", parts, "; ",
                       needs.worker(worst).name, " has ",
                       FormatByteSize(needs.worker(worst).memory_budget_bytes));
  }
  return why;
}

absl::Status DoesNotFit(const StageCosts& costs, absl::Span<const PlannerWorker> workers,
                        const PlannerOptions& options, const std::vector<WorkerList>& lists) {
  const LayerCost& whole = costs.Of(0, costs.num_layers());
  const bool some_offload = std::any_of(workers.begin(), workers.end(),
                                        [](const PlannerWorker& w) { return w.offloads; });
  if (some_offload && whole.can_offload()) {
    return absl::FailedPreconditionError(
        WhyNoStageFits(costs, options, lists, /*may_offload=*/true));
  }
  const bool some_cards =
      std::any_of(workers.begin(), workers.end(), [](const PlannerWorker& w) { return w.on_card; });
  const bool could_if_packed = some_offload && whole.num_experts > 0;
  return absl::FailedPreconditionError(absl::StrCat(
      some_cards ? WhyNoStageFits(costs, options, lists, /*may_offload=*/false)
                 : WhyNotResident(costs, workers, options.context_tokens),
      could_if_packed ? "; only a packed model's experts (caravan pack) may stay on disks" : ""));
}

/// Shares each worker's budget out.
PipelinePlan MakePlan(const StageCosts& costs, const PlannerOptions& options, const Split& split) {
  const Needs needs(costs, options, *split.workers, split.may_offload);
  const int64_t wanted_tokens = std::max(options.context_tokens, options.kv_tokens);
  PipelinePlan plan;
  plan.version = options.version;
  int64_t pipeline_tokens = kMaxTokens;  // that every stage caches
  for (int w = 0, begin = 0; w < needs.num_workers(); begin = split.ends[w++]) {
    const int end = split.ends[w];
    const LayerCost& cost = costs.Of(begin, end);
    const PlannerWorker& worker = needs.worker(w);
    const StageNeed need = needs.Of(w, begin, end);
    const int64_t spare = worker.memory_budget_bytes - need.total();
    const int64_t wanted_kv = KvCacheBytes(cost, worker.kv_dtype, wanted_tokens);
    StagePlan stage;
    stage.worker = worker.id;
    stage.stage = costs.Stage(begin, end);
    stage.weight_bytes = cost.weight_bytes;
    stage.kv_bytes =
        std::min(need.kv + (need.offloads ? spare / kKvShareDivisor : spare), wanted_kv);
    pipeline_tokens = std::min(pipeline_tokens, TakeKvDisk(cost, worker, wanted_tokens, stage));
    plan.stages.push_back(stage);
  }
  // The stage that caches fewest tokens decides for all: beyond that, slots are worth more.
  pipeline_tokens = std::max(pipeline_tokens, options.context_tokens);
  for (int w = 0; w < needs.num_workers(); ++w) {
    StagePlan& stage = plan.stages[static_cast<size_t>(w)];
    const int begin = stage.stage.first_layer;
    const int end = stage.stage.end_layer;
    const LayerCost& cost = costs.Of(begin, end);
    const PlannerWorker& worker = needs.worker(w);
    const StageNeed need = needs.Of(w, begin, end);
    if (need.offloads) {
      stage.kv_bytes =
          std::min(stage.kv_bytes, KvCacheBytes(cost, worker.kv_dtype, pipeline_tokens));
    }
    TakeKvDisk(cost, worker, std::min(pipeline_tokens, wanted_tokens), stage);
    if (!need.offloads) continue;
    const int64_t left = worker.memory_budget_bytes - need.weights - need.beside - stage.kv_bytes;
    stage.expert_bytes = left / cost.expert_slot_bytes * cost.expert_slot_bytes;
  }
  return plan;
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
  const StageCosts costs(cost);
  const std::vector<WorkerList> lists = ListsToTry(workers, costs.num_layers());
  std::optional<Split> split = FindSplit(costs, options, lists, /*may_offload=*/false);
  if (!split.has_value()) split = FindSplit(costs, options, lists, /*may_offload=*/true);
  if (!split.has_value()) return DoesNotFit(costs, workers, options, lists);
  return MakePlan(costs, options, *split);
}

}  // namespace caravan
