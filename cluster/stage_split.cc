#include "cluster/stage_split.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "base/check.h"

namespace caravan {
namespace {

/// The best way to a state: what it costs, and its last stage.
struct Way {
  double cost = kImpossible;
  int16_t kind = -1;
  int16_t first = 0;
  int16_t network = 0;  // before that stage
  int16_t passed = 0;   // with in_order: boxes that were used or left out before it
};

class Search {
 public:
  Search(const StageCosts& costs, const SplitRules& rules)
      : costs_(costs),
        rules_(rules),
        layers_(costs.num_layers()),
        networks_(static_cast<int>(rules.hops.size())),
        bound_(rules.below) {
    if (rules_.in_order) {
      // A combination is (stages so far, boxes that were used or left out).
      CARAVAN_CHECK(rules_.num_stages > 0);
      combinations_ = static_cast<size_t>(rules_.num_stages + 1) * (num_kinds() + 1);
      totals_.resize(combinations_);
      for (size_t c = 0; c < combinations_; ++c) {
        totals_[c] = static_cast<int>(c / (num_kinds() + 1));
      }
      FindTakeovers();
      return;
    }
    // More boxes than layers or stages are of no use.
    const int most = rules_.num_stages > 0 ? std::min(rules_.num_stages, layers_) : layers_;
    std::optional<size_t> endless;
    for (const int count : rules_.counts) {
      if (count >= most && endless.has_value()) {
        tallies_.push_back(*endless);
        continue;
      }
      tallies_.push_back(limits_.size());
      if (count >= most) endless = tallies_.back();
      strides_.push_back(combinations_);
      limits_.push_back(std::min(count, most));
      combinations_ *= static_cast<size_t>(limits_.back()) + 1;
    }
    totals_.resize(combinations_);
    std::vector<int> used(limits_.size(), 0);
    for (int& total : totals_) {
      total = std::accumulate(used.begin(), used.end(), 0);
      Next(used);
    }
    FindTakeovers();
  }

  bool MaySplit() const { return takeovers_.front() == 0; }

  std::optional<Split> Run() {
    if (!MaySplit()) return std::nullopt;
    FindRests();
    ways_.resize(combinations_ * static_cast<size_t>(networks_ * (layers_ + 1)));
    std::vector<int> used(limits_.size(), 0);
    size_t best = ways_.size();
    size_t best_combination = 0;
    for (size_t combination = 0; combination < combinations_; ++combination, Next(used)) {
      const int total = totals_[combination];
      if (total > 0 && (rules_.num_stages == 0 || total == rules_.num_stages)) {
        for (int network = 0; network < networks_; ++network) {
          const size_t at = At(combination, network, layers_);
          const double back = total > 1 ? rules_.returns[static_cast<size_t>(network)] : 0;
          if (ways_[at].cost + back < bound_) {
            bound_ = ways_[at].cost + back;
            best = at;
            best_combination = combination;
          }
        }
      }
      if (MayGoOn(total)) Extend(combination, used, total);
    }
    if (best == ways_.size()) return std::nullopt;
    return Trace(best_combination, best, bound_);
  }

 private:
  size_t At(size_t combination, int network, int layer) const {
    return (combination * static_cast<size_t>(networks_) + static_cast<size_t>(network)) *
               static_cast<size_t>(layers_ + 1) +
           static_cast<size_t>(layer);
  }
  size_t ByKind(size_t kind, int layer) const {
    return kind * static_cast<size_t>(layers_ + 1) + static_cast<size_t>(layer);
  }

  size_t num_kinds() const { return rules_.counts.size(); }

  /// Whether a box of the kind may come behind such boxes; `used` is not looked at with in_order.
  bool HasMore(size_t combination, const std::vector<int>& used, size_t kind) const {
    if (rules_.in_order) return kind >= Passed(combination);
    return used[tallies_[kind]] < limits_[tallies_[kind]];
  }
  size_t Passed(size_t combination) const { return combination % (num_kinds() + 1); }
  /// The combination with one more box of the kind.
  size_t With(size_t combination, size_t kind) const {
    if (!rules_.in_order) return combination + strides_[tallies_[kind]];
    return combination - Passed(combination) + num_kinds() + 1 + kind + 1;
  }

  /// The combinations in order: whoever uses one box more comes later.
  void Next(std::vector<int>& used) const {
    for (size_t tally = 0; tally < used.size(); ++tally) {
      if (used[tally] < limits_[tally]) {
        ++used[tally];
        return;
      }
      used[tally] = 0;
    }
  }

  bool MayGoOn(int total) const {
    return total < layers_ && (rules_.num_stages == 0 || total < rules_.num_stages);
  }

  /// takeovers_: of each combination the first layer from which the boxes that it does not use
  /// could hold all others, if a stage within a possible one were always possible. So it is never
  /// too late. latest_ends_: of the possible stages that begin at a layer.
  void FindTakeovers() {
    const size_t kinds = num_kinds();
    latest_ends_.assign(kinds * static_cast<size_t>(layers_ + 1), 0);
    // Where a stage that ends at a layer begins at the earliest.
    std::vector<int> begins(kinds * static_cast<size_t>(layers_ + 1));
    for (size_t kind = 0; kind < kinds; ++kind) {
      for (int end = 0; end <= layers_; ++end) begins[ByKind(kind, end)] = end;
      for (int first = 0; first < layers_; ++first) {
        for (int end = first + 1; end <= layers_; ++end) {
          const double cost = costs_.At(static_cast<int>(kind), first, end);
          if (cost == kImpossible || cost > rules_.most) continue;
          latest_ends_[ByKind(kind, first)] = end;
          int& begin = begins[ByKind(kind, end)];
          begin = std::min(begin, first);
        }
      }
      for (int end = layers_ - 1; end >= 0; --end) {
        int& begin = begins[ByKind(kind, end)];
        begin = std::min(begin, begins[ByKind(kind, end + 1)]);
      }
    }
    takeovers_.assign(combinations_, layers_);
    std::vector<int> used = limits_;
    for (size_t combination = combinations_; combination-- > 0; Previous(used)) {
      if (!MayGoOn(totals_[combination])) continue;
      int& first = takeovers_[combination];
      for (size_t kind = 0; kind < kinds; ++kind) {
        if (!HasMore(combination, used, kind)) continue;
        first = std::min(first, begins[ByKind(kind, takeovers_[With(combination, kind)])]);
      }
    }
  }

  /// Next, backwards.
  void Previous(std::vector<int>& used) const {
    for (size_t tally = 0; tally < used.size(); ++tally) {
      if (used[tally] > 0) {
        --used[tally];
        return;
      }
      used[tally] = limits_[tally];
    }
  }

  /// rests_: what the layers from one on cost at least in so many more stages, hops before each
  /// included, as if there were any number of boxes of each kind. With any number of stages all
  /// of rests_ is what that costs.
  void FindRests() {
    const size_t width = static_cast<size_t>(layers_) + 1;
    std::vector<double> cheapest(width * width, kImpossible);
    for (int kind = 0; kind < costs_.num_kinds(); ++kind) {
      for (int first = 0; first < layers_; ++first) {
        for (int end = first + 1; end <= latest_ends_[ByKind(static_cast<size_t>(kind), first)];
             ++end) {
          const double cost = costs_.At(kind, first, end);
          double& least = cheapest[static_cast<size_t>(first) * width + static_cast<size_t>(end)];
          if (cost <= rules_.most) least = std::min(least, cost);
        }
      }
    }
    double hop = kImpossible;
    for (const std::vector<double>& row : rules_.hops) {
      hop = std::min(hop, *std::min_element(row.begin(), row.end()));
    }
    const size_t most = static_cast<size_t>(rules_.num_stages);
    rests_.assign((most + 1) * width, kImpossible);
    rests_[width - 1] = 0;
    for (size_t stages = most == 0 ? 0 : 1; stages <= most; ++stages) {
      const double* const after = &rests_[(most == 0 ? 0 : stages - 1) * width];
      double* const rests = &rests_[stages * width];
      for (size_t first = width - 1; first-- > 0;) {
        for (size_t end = first + 1; end < width; ++end) {
          rests[first] = std::min(rests[first], hop + cheapest[first * width + end] + after[end]);
        }
      }
    }
  }

  /// Puts one more box behind every state of the combination.
  void Extend(size_t combination, const std::vector<int>& used, int total) {
    for (int network = 0; network < networks_; ++network) {
      for (int first = total; first < layers_; ++first) {
        double cost = ways_[At(combination, network, first)].cost;
        if (total == 0) {
          // Nothing is before the first stage.
          if (network > 0 || first > 0) return;
          cost = 0;
        }
        if (cost == kImpossible) continue;
        for (size_t kind = 0; kind < num_kinds(); ++kind) {
          if (!HasMore(combination, used, kind)) continue;
          const int next = rules_.networks[kind];
          const double hop =
              total == 0 ? 0 : rules_.hops[static_cast<size_t>(network)][static_cast<size_t>(next)];
          if (hop == kImpossible) continue;
          const Way way = {cost + hop, static_cast<int16_t>(kind), static_cast<int16_t>(first),
                           static_cast<int16_t>(network),
                           static_cast<int16_t>(rules_.in_order ? Passed(combination) : 0)};
          Append(With(combination, kind), total, way);
        }
      }
    }
  }

  /// Stages of all ends that `last` may have, as it is, with what comes before them as its cost.
  void Append(size_t to, int total, const Way& last) {
    const int kind = last.kind;
    const int first = last.first;
    const double cost = last.cost;
    // A box that follows wants a layer too.
    const int left = rules_.num_stages == 0 ? 0 : rules_.num_stages - total - 1;
    const int begin =
        rules_.num_stages > 0 && left == 0 ? layers_ : std::max(first + 1, takeovers_[to]);
    const int most =
        std::min(latest_ends_[ByKind(static_cast<size_t>(kind), first)], layers_ - left);
    const double* const rests =
        &rests_[static_cast<size_t>(left) * (static_cast<size_t>(layers_) + 1)];
    Way* const ways = &ways_[At(to, rules_.networks[static_cast<size_t>(kind)], 0)];
    for (int end = begin; end <= most; ++end) {
      const double stage = costs_.At(kind, first, end);
      if (stage > rules_.most || cost + stage + rests[end] >= bound_) continue;
      Way& way = ways[end];
      if (cost + stage < way.cost) {
        way = last;
        way.cost = cost + stage;
      }
    }
  }

  Split Trace(size_t combination, size_t at, double cost) const {
    Split split;
    split.cost = cost;
    int end = layers_;
    while (end > 0) {
      const Way& way = ways_[at];
      split.stages.push_back({way.kind, way.first, end});
      if (rules_.in_order) {
        combination += static_cast<size_t>(way.passed) - Passed(combination) - num_kinds() - 1;
      } else {
        combination -= strides_[tallies_[static_cast<size_t>(way.kind)]];
      }
      end = way.first;
      at = At(combination, way.network, end);
    }
    std::reverse(split.stages.begin(), split.stages.end());
    return split;
  }

  const StageCosts& costs_;
  const SplitRules& rules_;
  const int layers_;
  const int networks_;
  double bound_;  // what is not below it is of no interest
  // Boxes are counted by kind, but those of all kinds that never run out together: which of these
  // were used does not matter to what follows.
  std::vector<size_t> tallies_;  // in which each kind is counted
  std::vector<int> limits_;      // of each of these
  std::vector<size_t> strides_;
  size_t combinations_ = 1;
  std::vector<int> totals_;  // boxes, by combination
  std::vector<int> takeovers_;
  std::vector<int> latest_ends_;  // by kind and first layer
  std::vector<double> rests_;
  std::vector<Way> ways_;
};

void CheckRules(const StageCosts& costs, const SplitRules& rules) {
  CARAVAN_CHECK(static_cast<int>(rules.counts.size()) == costs.num_kinds() &&
                rules.networks.size() == rules.counts.size() &&
                rules.returns.size() == rules.hops.size());
}

}  // namespace

StageCosts::StageCosts(int num_kinds, int num_layers,
                       absl::FunctionRef<double(int kind, int first, int end)> cost)
    : num_kinds_(num_kinds), num_layers_(num_layers), width_(static_cast<size_t>(num_layers) + 1) {
  costs_.resize(static_cast<size_t>(num_kinds) * width_ * width_, kImpossible);
  for (int kind = 0; kind < num_kinds; ++kind) {
    for (int first = 0; first < num_layers; ++first) {
      for (int end = first + 1; end <= num_layers; ++end) {
        costs_[(static_cast<size_t>(kind) * width_ + static_cast<size_t>(first)) * width_ +
               static_cast<size_t>(end)] = cost(kind, first, end);
      }
    }
  }
}

std::vector<double> StageCosts::Values() const {
  std::vector<double> values;
  for (const double cost : costs_) {
    if (cost != kImpossible) values.push_back(cost);
  }
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

std::optional<Split> CheapestSplit(const StageCosts& costs, const SplitRules& rules) {
  CheckRules(costs, rules);
  return Search(costs, rules).Run();
}

std::optional<double> LeastMost(const StageCosts& costs, SplitRules rules) {
  const std::vector<double> values = costs.Values();
  const auto least = std::partition_point(values.begin(), values.end(), [&](double value) {
    rules.most = value;
    return !CheapestSplit(costs, rules).has_value();
  });
  if (least == values.end()) return std::nullopt;
  return *least;
}

bool MaySplit(const StageCosts& costs, const SplitRules& rules) {
  CheckRules(costs, rules);
  return Search(costs, rules).MaySplit();
}

double SplitStates(int num_layers, const std::vector<int>& counts, int num_networks) {
  double states = (num_layers + 1.0) * num_networks;
  bool endless = false;
  for (const int count : counts) {
    if (count < num_layers) {
      states *= count + 1.0;
    } else if (!std::exchange(endless, true)) {
      states *= num_layers + 1.0;
    }
  }
  return states;
}

}  // namespace caravan
