#include "cluster/fastest_split.h"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "base/check.h"

namespace caravan {
namespace {

/// Networks that differ, and which of them each kind is in.
struct Networks {
  explicit Networks(absl::Span<const BoxKind> kinds) {
    for (const BoxKind& kind : kinds) {
      const auto it = std::find_if(boxes.begin(), boxes.end(), [&](const Box* other) {
        return other->network.bytes == kind.box->network.bytes &&
               other->network.latency_seconds == kind.box->network.latency_seconds;
      });
      of_kinds.push_back(static_cast<int>(it - boxes.begin()));
      if (it == boxes.end()) boxes.push_back(kind.box);
    }
  }

  std::vector<const Box*> boxes;  // a box of each
  std::vector<int> of_kinds;
};

class Search {
 public:
  Search(const ModelConfig& config, int num_layers, absl::Span<const BoxKind> kinds,
         StageSeconds seconds, const FastestSplitOptions& options)
      : config_(config),
        num_layers_(num_layers),
        kinds_(kinds),
        load_(options.load),
        seconds_(seconds),
        networks_(kinds),
        least_(options.below) {
    rules_.in_order = options.in_order;
    rules_.networks = networks_.of_kinds;
    for (const BoxKind& kind : kinds) {
      rules_.counts.push_back(kind.count);
      num_boxes_ += kind.count;
    }
  }

  /// The least of max(a round, micro-batches * what is busy longest), of each number of stages.
  std::optional<Split> Run() {
    // A lone job is one micro-batch however many stages there are: all numbers at once.
    const bool all_at_once = load_.decoding_jobs() == 1 && !rules_.in_order;
    const int most = all_at_once ? 0 : std::min(num_boxes_, num_layers_);
    const int least = all_at_once ? 0 : 1;
    // Many jobs mostly want many stages: those first, so that the others are soon seen to be worse.
    for (int stages = most; stages >= least; --stages) Improve(stages);
    if (best_.has_value()) best_->cost = least_;
    return std::move(best_);
  }

 private:
  /// Looks for a split into so many stages (0: any number, of a lone job) that is better than the
  /// best. With a limit on what may
  /// be busy how long, a lower limit makes the cheapest round longer: so the best limit is found by
  /// halves, among those for which there may be a split at all.
  void Improve(int num_stages) {
    const auto batches = static_cast<double>(MicroBatches(std::max(1, num_stages), load_));
    const double rows = static_cast<double>(load_.decoding_jobs()) / batches;
    if (rows != table_rows_) MakeTable(rows);
    const StageCosts& table = *table_;
    const std::vector<double>& limits = limits_;
    rules_.num_stages = num_stages;
    // Those above cannot be in a better one.
    const auto end_of_better = [&] {
      return std::lower_bound(limits.begin(), limits.end(), least_ / batches);
    };
    auto end = end_of_better();
    auto begin = std::partition_point(limits.begin(), end, [&](double limit) {
      SetHops(rows, limit);
      return !MaySplit(table, rules_);
    });
    // Where a round is all that counts, no limit is best. Else it is mostly the least that there
    // may be.
    bool is_first = true;
    while (begin < end) {
      const auto limit = !is_first ? begin + (end - begin) / 2 : batches == 1 ? end - 1 : begin;
      is_first = false;
      SetHops(rows, *limit);
      rules_.below = least_;
      std::optional<Split> split = CheapestSplit(table, rules_);
      if (!split.has_value()) {
        begin = limit + 1;
        continue;
      }
      const double round = split->cost;
      least_ = std::max(round, batches * Busiest(table, *split, rows));
      best_ = std::move(split);
      if (round >= least_) {
        begin = limit + 1;  // no lower limit has a shorter round
        end = std::min(end, end_of_better());
      } else {
        end = limit;  // who is busy for as long as this limit is no better than this
      }
    }
  }

  void MakeTable(double rows) {
    table_rows_ = rows;
    table_.emplace(static_cast<int>(kinds_.size()), num_layers_,
                   [&](int kind, int first, int end) { return seconds_(kind, first, end, rows); });
    limits_ = table_->Values();
    for (const Box* from : networks_.boxes) {
      for (const Box* to : networks_.boxes) {
        limits_.push_back(SendSeconds(config_, *from, *to, rows));
      }
    }
    std::sort(limits_.begin(), limits_.end());
  }

  /// Hops of messages of `rows`; those whose sending takes more than `most` are not taken.
  void SetHops(double rows, double most) {
    const size_t size = networks_.boxes.size();
    rules_.hops.assign(size, std::vector<double>(size, 0));
    rules_.returns.assign(size, 0);
    for (size_t from = 0; from < size; ++from) {
      const Box& sender = *networks_.boxes[from];
      rules_.returns[from] = sender.network.latency_seconds;
      for (size_t to = 0; to < size; ++to) {
        const Box& receiver = *networks_.boxes[to];
        const double sending = SendSeconds(config_, sender, receiver, rows);
        rules_.hops[from][to] =
            sending > most ? kImpossible : sending + HopLatency(sender, receiver);
      }
    }
    rules_.most = most;
  }

  double Busiest(const StageCosts& table, const Split& split, double rows) const {
    const auto box_of = [&](const PickedStage& stage) -> const Box& {
      return *kinds_[static_cast<size_t>(stage.kind)].box;
    };
    double busiest = 0;
    for (size_t i = 0; i < split.stages.size(); ++i) {
      const PickedStage& stage = split.stages[i];
      busiest = std::max(busiest, table.At(stage.kind, stage.first, stage.end));
      if (i + 1 == split.stages.size()) break;
      busiest =
          std::max(busiest, SendSeconds(config_, box_of(stage), box_of(split.stages[i + 1]), rows));
    }
    return busiest;
  }

  const ModelConfig& config_;
  const int num_layers_;
  const absl::Span<const BoxKind> kinds_;
  const DecodeLoad& load_;
  const StageSeconds seconds_;
  const Networks networks_;
  int num_boxes_ = 0;
  SplitRules rules_;
  double table_rows_ = 0;
  std::optional<StageCosts> table_;  // for these
  std::vector<double> limits_;       // on what may be busy how long, ascending
  double least_;
  std::optional<Split> best_;
};

}  // namespace

DecodeLoad LoadFor(PlanAim aim, DecodeLoad load) {
  if (aim == PlanAim::kInteractive) load.decoding = 1;
  return load;
}

std::optional<Split> FastestSplit(const ModelConfig& config, int num_layers,
                                  absl::Span<const BoxKind> kinds, StageSeconds seconds,
                                  const FastestSplitOptions& options) {
  CARAVAN_CHECK(num_layers >= 1 && !kinds.empty() && options.load.jobs >= 1);
  return Search(config, num_layers, kinds, seconds, options).Run();
}

double FastestSplitStates(int num_layers, absl::Span<const BoxKind> kinds) {
  std::vector<int> counts;
  for (const BoxKind& kind : kinds) counts.push_back(kind.count);
  return SplitStates(num_layers, counts, static_cast<int>(Networks(kinds).boxes.size()));
}

}  // namespace caravan
