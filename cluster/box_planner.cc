#include "cluster/box_planner.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "cluster/stage_split.h"
#include "model/stage_spec.h"

namespace caravan {
namespace {

// A search goes through all of them some dozen times for each number of stages, some ten million a
// second.
constexpr double kMostStates = 1e6;

class BoxPlanner {
 public:
  BoxPlanner(const ModelConfig& config, const ModelCost& cost, absl::Span<const BoxCount> boxes,
             const DecodeLoad& load)
      : config_(config),
        cost_(cost),
        boxes_(boxes),
        load_(load),
        num_layers_(static_cast<int>(cost.layers.size())) {
    for (const BoxCount& kind : boxes) {
      // A box has a layer at least.
      rules_.counts.push_back(std::min(kind.count, num_layers_));
      num_boxes_ += rules_.counts.back();
      rules_.networks.push_back(NetworkOf(kind.box));
    }
  }

  absl::StatusOr<std::vector<BoxStage>> Plan(PlanAim aim) {
    const double states =
        SplitStates(num_layers_, rules_.counts, static_cast<int>(networks_.size()));
    if (states > kMostStates) {
      return absl::InvalidArgumentError(
          absl::StrCat(boxes_.size(),
                       " kinds of box, so many of each, have too many orders to go through all; "
                       "give fewer kinds, or fewer of them"));
    }
    const std::optional<Split> split = aim == PlanAim::kBulk ? MostTokens() : LeastLatency();
    if (!split.has_value()) return WhatLacks();
    return Stages(*split);
  }

 private:
  /// The number of the box's network among those that differ.
  int NetworkOf(const Box& box) {
    const auto same = [&](const Box* other) {
      return other->network.bytes == box.network.bytes &&
             other->network.latency_seconds == box.network.latency_seconds;
    };
    const auto it = std::find_if(networks_.begin(), networks_.end(), same);
    const auto number = static_cast<int>(it - networks_.begin());
    if (it == networks_.end()) networks_.push_back(&box);
    return number;
  }

  StageSpec Spec(int first, int end) const {
    StageSpec stage;
    stage.first_layer = first;
    stage.end_layer = end;
    stage.embeds = first == 0;
    stage.has_head = end == num_layers_;
    return stage;
  }

  const Box& BoxOf(int kind) const { return boxes_[static_cast<size_t>(kind)].box; }

  /// Seconds of each stage for a micro-batch of `rows`.
  StageCosts Seconds(const DecodeLoad& load, double rows) const {
    return StageCosts(Kinds(), num_layers_, [&](int kind, int first, int end) {
      const LayerCost stage = cost_.Of(Spec(first, end));
      if (LackOf(stage, BoxOf(kind), load).bytes() > 0) return kImpossible;
      const absl::StatusOr<StageTime> time = PredictStage(config_, stage, BoxOf(kind), load, rows);
      CARAVAN_CHECK(time.ok());
      return time->seconds;
    });
  }

  int Kinds() const { return static_cast<int>(boxes_.size()); }

  /// Hops of messages of `rows`; those whose sending takes more than `most` are not taken.
  void SetHops(double rows, double most) {
    const size_t size = networks_.size();
    rules_.hops.assign(size, std::vector<double>(size, 0));
    rules_.returns.assign(size, 0);
    for (size_t from = 0; from < size; ++from) {
      rules_.returns[from] = networks_[from]->network.latency_seconds;
      for (size_t to = 0; to < size; ++to) {
        const double sending = SendSeconds(config_, *networks_[from], *networks_[to], rows);
        rules_.hops[from][to] =
            sending > most ? kImpossible : sending + HopLatency(*networks_[from], *networks_[to]);
      }
    }
    rules_.most = most;
  }

  std::optional<Split> LeastLatency() {
    DecodeLoad alone = load_;
    alone.decoding = 1;
    const StageCosts seconds = Seconds(alone, 1);
    SetHops(1, kImpossible);
    rules_.num_stages = 0;
    return CheapestSplit(seconds, rules_);
  }

  /// The least of max(a round, micro-batches * what is busy longest), of each number of stages.
  std::optional<Split> MostTokens() {
    std::optional<Split> best;
    double least = kImpossible;
    for (int stages = std::min(num_boxes_, num_layers_); stages >= 1; --stages) {
      const auto batches = static_cast<double>(MicroBatches(stages, load_));
      const double rows = static_cast<double>(load_.decoding_jobs()) / batches;
      if (rows != table_rows_) {
        table_.emplace(Seconds(load_, rows));
        table_rows_ = rows;
      }
      rules_.num_stages = stages;
      Improve(*table_, rows, batches, least, best);
    }
    return best;
  }

  /// Looks for a split into rules_.num_stages stages with a cycle below `least`. With a limit on
  /// what may be busy how long, a lower limit makes the cheapest round longer: so the best limit is
  /// found by halves.
  void Improve(const StageCosts& seconds, double rows, double batches, double& least,
               std::optional<Split>& best) {
    std::vector<double> limits = seconds.Values();
    for (const Box* from : networks_) {
      for (const Box* to : networks_) limits.push_back(SendSeconds(config_, *from, *to, rows));
    }
    std::sort(limits.begin(), limits.end());
    size_t begin = 0;
    // Those above cannot be in a better one.
    size_t end = static_cast<size_t>(
        std::lower_bound(limits.begin(), limits.end(), least / batches) - limits.begin());
    bool is_first = true;
    while (begin < end) {
      // First with all, as most numbers of stages have nothing better.
      const size_t middle = is_first ? end - 1 : begin + (end - begin) / 2;
      is_first = false;
      SetHops(rows, limits[middle]);
      std::optional<Split> split = CheapestSplit(seconds, rules_);
      if (!split.has_value()) {
        begin = middle + 1;
        continue;
      }
      const double round = split->cost;
      const double cycle = std::max(round, batches * Busiest(seconds, *split, rows));
      if (cycle < least) {
        least = cycle;
        best = std::move(split);
      }
      if (round >= least) {
        begin = middle + 1;  // no lower limit has a shorter round
      } else {
        end = middle;  // who is busy for as long as this limit is no better than the best
      }
    }
  }

  double Busiest(const StageCosts& seconds, const Split& split, double rows) const {
    double busiest = 0;
    for (size_t i = 0; i < split.stages.size(); ++i) {
      const PickedStage& stage = split.stages[i];
      busiest = std::max(busiest, seconds.At(stage.kind, stage.first, stage.end));
      if (i + 1 == split.stages.size()) break;
      busiest = std::max(
          busiest, SendSeconds(config_, BoxOf(stage.kind), BoxOf(split.stages[i + 1].kind), rows));
    }
    return busiest;
  }

  std::vector<BoxStage> Stages(const Split& split) const {
    std::vector<BoxStage> stages;
    for (const PickedStage& picked : split.stages) {
      stages.push_back({&BoxOf(picked.kind), Spec(picked.first, picked.end)});
    }
    return stages;
  }

  /// The split that lacks least, in words.
  absl::Status WhatLacks() {
    const StageCosts lacks(Kinds(), num_layers_, [&](int kind, int first, int end) {
      return static_cast<double>(LackOf(cost_.Of(Spec(first, end)), BoxOf(kind), load_).bytes());
    });
    SetHops(0, kImpossible);
    for (std::vector<double>& row : rules_.hops) std::fill(row.begin(), row.end(), 0);
    std::fill(rules_.returns.begin(), rules_.returns.end(), 0);
    rules_.num_stages = 0;
    const std::optional<Split> split = CheapestSplit(lacks, rules_);
    CARAVAN_CHECK(split.has_value());
    std::string what;
    for (size_t i = 0; i < split->stages.size(); ++i) {
      const PickedStage& stage = split->stages[i];
      const StageLack lack =
          LackOf(cost_.Of(Spec(stage.first, stage.end)), BoxOf(stage.kind), load_);
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
    return absl::FailedPreconditionError(
        absl::StrCat("the model does not fit; of all splits the nearest: ", what));
  }

  const ModelConfig& config_;
  const ModelCost& cost_;
  const absl::Span<const BoxCount> boxes_;
  const DecodeLoad& load_;
  const int num_layers_;
  int num_boxes_ = 0;
  std::vector<const Box*> networks_;  // a box of each
  SplitRules rules_;
  std::optional<StageCosts> table_;  // for table_rows_
  double table_rows_ = 0;
};

}  // namespace

absl::StatusOr<std::vector<BoxStage>> PlanBoxes(const ModelConfig& config, const ModelCost& cost,
                                                absl::Span<const BoxCount> boxes,
                                                const DecodeLoad& load, PlanAim aim) {
  CARAVAN_CHECK(!cost.layers.empty() && !boxes.empty() && load.jobs >= 1);
  return BoxPlanner(config, cost, boxes, load).Plan(aim);
}

}  // namespace caravan
