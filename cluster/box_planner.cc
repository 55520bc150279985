#include "cluster/box_planner.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "cluster/stage_split.h"
#include "model/stage_spec.h"

namespace caravan {
namespace {

// A search goes through a part of them a few times for each number of stages.
constexpr double kMostStates = 1e6;

class BoxPlanner {
 public:
  BoxPlanner(const ModelConfig& config, const ModelCost& cost, absl::Span<const BoxCount> boxes,
             const DecodeLoad& load)
      : config_(config),
        boxes_(boxes),
        load_(load),
        num_layers_(static_cast<int>(cost.layers.size())) {
    for (const BoxCount& kind : boxes) {
      // A box has a layer at least.
      kinds_.push_back({&kind.box, std::min(kind.count, num_layers_)});
    }
    for (int first = 0; first < num_layers_; ++first) {
      for (int end = first + 1; end <= num_layers_; ++end) {
        costs_[{first, end}] = cost.Of(StageOf(first, end, num_layers_));
      }
    }
  }

  absl::StatusOr<std::vector<BoxStage>> Plan(PlanAim aim) {
    const DecodeLoad load = LoadFor(aim, load_);
    if (FastestSplitStates(num_layers_, kinds_) > kMostStates) {
      // The best plan for boxes that never run out is soon found, unless too many networks differ.
      // Where it takes no more than there are, there is no better one for these either.
      std::vector<BoxKind> endless = kinds_;
      for (BoxKind& kind : endless) kind.count = num_layers_;
      CARAVAN_RETURN_IF_ERROR(CheckFits(endless));
      if (FastestSplitStates(num_layers_, endless) <= kMostStates) {
        const std::optional<Split> split = Fastest(endless, load);
        if (split.has_value() && AreThere(*split)) return Stages(*split);
      }
      return absl::InvalidArgumentError(absl::StrCat(
          boxes_.size(),
          " kinds of box, so many of each, have too many orders to go through all; "
          "give fewer kinds, fewer of them, or of each as many as the model has layers"));
    }
    const std::optional<Split> split = Fastest(kinds_, load);
    if (split.has_value()) return Stages(*split);
    const absl::Status lack = CheckFits(kinds_);
    CARAVAN_CHECK(!lack.ok());
    return lack;
  }

 private:
  std::optional<Split> Fastest(absl::Span<const BoxKind> kinds, const DecodeLoad& load) const {
    return FastestSplit(config_, num_layers_, kinds,
                        [&](int kind, int first, int end, double rows) {
                          const LayerCost& stage = CostOf(first, end);
                          if (LackOf(stage, BoxOf(kind), load).bytes() > 0) return kImpossible;
                          const absl::StatusOr<StageTime> time =
                              PredictStage(config_, stage, BoxOf(kind), load, rows);
                          CARAVAN_CHECK(time.ok());
                          return time->seconds;
                        },
                        {.load = load});
  }

  /// Whether the split takes no more boxes of each kind than there are.
  bool AreThere(const Split& split) const {
    std::vector<int> left;
    for (const BoxKind& kind : kinds_) left.push_back(kind.count);
    return std::all_of(split.stages.begin(), split.stages.end(), [&](const PickedStage& stage) {
      return left[static_cast<size_t>(stage.kind)]-- > 0;
    });
  }

  const Box& BoxOf(int kind) const { return boxes_[static_cast<size_t>(kind)].box; }
  const LayerCost& CostOf(int first, int end) const { return costs_.at({first, end}); }

  std::vector<BoxStage> Stages(const Split& split) const {
    std::vector<BoxStage> stages;
    for (const PickedStage& picked : split.stages) {
      stages.push_back({&BoxOf(picked.kind), StageOf(picked.first, picked.end, num_layers_)});
    }
    return stages;
  }

  /// Whether any split fits; if not, says of the one that lacks least what.
  absl::Status CheckFits(absl::Span<const BoxKind> kinds) const {
    const StageCosts lacks(
        static_cast<int>(boxes_.size()), num_layers_, [&](int kind, int first, int end) {
          return static_cast<double>(LackOf(CostOf(first, end), BoxOf(kind), load_).bytes());
        });
    SplitRules rules;
    for (const BoxKind& kind : kinds) rules.counts.push_back(kind.count);
    rules.networks.assign(kinds.size(), 0);
    rules.hops = {{0}};
    rules.returns = {0};
    const std::optional<Split> split = CheapestSplit(lacks, rules);
    CARAVAN_CHECK(split.has_value());
    std::string what;
    for (size_t i = 0; i < split->stages.size(); ++i) {
      const PickedStage& stage = split->stages[i];
      const StageLack lack = LackOf(CostOf(stage.first, stage.end), BoxOf(stage.kind), load_);
      if (lack.bytes() == 0) continue;
      absl::StrAppend(&what, what.empty() ? "" : ", ", "stage ", i + 1, " (layers ", stage.first,
                      "..", stage.end - 1, ", box ", BoxOf(stage.kind).name, ") lacks ");
      if (lack.memory_bytes > 0) {
        absl::StrAppend(&what, FormatByteSize(lack.memory_bytes), " of memory");
      }
      if (lack.disk_bytes > 0) {
        absl::StrAppend(&what, lack.memory_bytes > 0 ? " and " : "",
                        FormatByteSize(lack.disk_bytes), " of disk");
      }
    }
    if (what.empty()) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("the model does not fit; of all splits the nearest: ", what));
  }

  const ModelConfig& config_;
  const absl::Span<const BoxCount> boxes_;
  const DecodeLoad& load_;
  const int num_layers_;
  std::vector<BoxKind> kinds_;
  std::map<std::pair<int, int>, LayerCost> costs_;  // of all possible stages
};

}  // namespace

absl::StatusOr<std::vector<BoxStage>> PlanBoxes(const ModelConfig& config, const ModelCost& cost,
                                                absl::Span<const BoxCount> boxes,
                                                const DecodeLoad& load, PlanAim aim) {
  CARAVAN_CHECK(!cost.layers.empty() && !boxes.empty() && load.jobs >= 1);
  return BoxPlanner(config, cost, boxes, load).Plan(aim);
}

}  // namespace caravan
