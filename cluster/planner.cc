#include "cluster/planner.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "kernels/kv_rows.h"

namespace caravan {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 40;  // past any memory; times bytes fits 63 bits
constexpr double kImpossible = std::numeric_limits<double>::infinity();

/// Sums over ranges of layers.
class StageCosts {
 public:
  explicit StageCosts(const ModelCost& cost)
      : embedding_bytes_(cost.embedding.weight_bytes),
        head_bytes_(cost.head.weight_bytes),
        mtp_(cost.mtp) {
    for (const LayerCost& layer : cost.layers) {
      weights_.push_back(weights_.back() + layer.weight_bytes);
      kv_per_token_.push_back(kv_per_token_.back() + layer.kv_values_per_token);
    }
  }

  int num_layers() const { return static_cast<int>(weights_.size()) - 1; }

  /// The stage with layers [begin, end).
  StageSpec Stage(int begin, int end) const {
    const bool is_last = end == num_layers();
    return {begin, end, begin == 0, is_last, is_last && mtp_.has_value()};
  }
  int64_t WeightBytes(int begin, int end) const {
    const StageSpec stage = Stage(begin, end);
    return weights_[end] - weights_[begin] + (stage.embeds || stage.drafts ? embedding_bytes_ : 0) +
           (stage.has_head ? head_bytes_ : 0) + (stage.drafts ? mtp_->weight_bytes : 0);
  }
  /// Of so many tokens' KV cache.
  int64_t KvCacheBytes(int begin, int end, DType dtype, int64_t tokens) const {
    const int64_t values = kv_per_token_[end] - kv_per_token_[begin] +
                           (Stage(begin, end).drafts ? mtp_->kv_values_per_token : 0);
    return KvBytes(dtype, values * tokens);
  }

 private:
  const int64_t embedding_bytes_;
  const int64_t head_bytes_;
  const std::optional<LayerCost> mtp_;
  // Of layers [0, i).
  std::vector<int64_t> weights_{0};
  std::vector<int64_t> kv_per_token_{0};
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
std::optional<std::vector<int>> SplitOver(const StageCosts& costs,
                                          absl::Span<const PlannerWorker* const> workers,
                                          int64_t context_tokens) {
  const int num_workers = static_cast<int>(workers.size());
  const auto share = [&](int worker, int begin, int end) {
    const int64_t budget = workers[worker]->memory_budget_bytes;
    const int64_t weights = costs.WeightBytes(begin, end);
    const int64_t kv = costs.KvCacheBytes(begin, end, workers[worker]->kv_dtype, context_tokens);
    if (weights + kv > budget) return kImpossible;
    return static_cast<double>(weights) / static_cast<double>(budget);
  };
  const auto largest = BestSplit(costs.num_layers(), num_workers, share,
                                 [](double a, double b) { return std::max(a, b); });
  if (!largest.has_value()) return std::nullopt;
  double limit = 0;
  for (int w = 0, begin = 0; w < num_workers; begin = (*largest)[w++]) {
    limit = std::max(limit, share(w, begin, (*largest)[w]));
  }
  const auto squared = [&](int worker, int begin, int end) {
    const double s = share(worker, begin, end);
    return s <= limit ? s * s : kImpossible;
  };
  return BestSplit(costs.num_layers(), num_workers, squared,
                   [](double a, double b) { return a + b; });
}

/// Why no split fits, in numbers.
absl::Status DoesNotFit(const StageCosts& costs, absl::Span<const PlannerWorker> workers,
                        int64_t context_tokens) {
  const int n = costs.num_layers();
  const int64_t weights = costs.WeightBytes(0, n);
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
  const int64_t kv = costs.KvCacheBytes(0, n, smallest_kv, context_tokens);
  const std::string needs =
      absl::StrCat("the model needs ", FormatByteSize(weights), " for weights and ",
                   FormatByteSize(kv), " for the KV cache of ", context_tokens, " tokens, ");
  const std::string offer =
      absl::StrCat(workers.size() == 1 ? "the worker offers "
                                       : absl::StrCat("the ", workers.size(), " workers offer "),
                   FormatByteSize(offered));
  if (offered < weights + kv)
    return absl::FailedPreconditionError(absl::StrCat(needs, "but ", offer));
  for (int layer = 0; layer < n; ++layer) {
    const int64_t bytes = costs.WeightBytes(layer, layer + 1) +
                          costs.KvCacheBytes(layer, layer + 1, smallest_kv, context_tokens);
    if (bytes <= largest->memory_budget_bytes) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(needs, "and ", offer, ", but ", DescribeStage(costs.Stage(layer, layer + 1)),
                     " alone needs ", FormatByteSize(bytes), " and the largest worker, ",
                     largest->name, ", has ", FormatByteSize(largest->memory_budget_bytes)));
  }
  return absl::FailedPreconditionError(
      absl::StrCat(needs, "and ", offer, ", but no split into whole layers fits every worker"));
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
  const StageCosts costs(cost);
  std::vector<const PlannerWorker*> candidates;
  for (const PlannerWorker& worker : workers) {
    if (worker.memory_budget_bytes <= 0) {
      return absl::InvalidArgumentError(absl::StrCat("worker ", worker.name, " has no memory"));
    }
    candidates.push_back(&worker);
  }

  std::optional<std::vector<int>> ends;
  while (true) {
    const size_t used = std::min(candidates.size(), cost.layers.size());
    ends = SplitOver(costs, absl::MakeConstSpan(candidates.data(), used), options.context_tokens);
    if (ends.has_value()) break;
    const auto smallest = std::min_element(candidates.begin(), candidates.begin() + used,
                                           [](const PlannerWorker* a, const PlannerWorker* b) {
                                             // Of equal ones the last counts as smaller.
                                             if (a->memory_budget_bytes == b->memory_budget_bytes)
                                               return a > b;
                                             return a->memory_budget_bytes < b->memory_budget_bytes;
                                           });
    candidates.erase(smallest);
    if (candidates.empty()) return DoesNotFit(costs, workers, options.context_tokens);
  }

  PipelinePlan plan;
  plan.version = options.version;
  const int64_t tokens = std::max(options.context_tokens, options.kv_tokens);
  int begin = 0;
  for (size_t i = 0; i < ends->size(); ++i) {
    const int end = (*ends)[i];
    StagePlan stage;
    stage.worker = candidates[i]->id;
    stage.stage = costs.Stage(begin, end);
    stage.weight_bytes = costs.WeightBytes(begin, end);
    stage.kv_bytes = std::min(candidates[i]->memory_budget_bytes - stage.weight_bytes,
                              costs.KvCacheBytes(begin, end, candidates[i]->kv_dtype, tokens));
    plan.stages.push_back(stage);
    begin = end;
  }
  return plan;
}

}  // namespace caravan
