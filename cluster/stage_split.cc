#include "cluster/stage_split.h"

#include <algorithm>

#include "base/check.h"

namespace caravan {
namespace {

/// The best way to a state: what it costs, and its last stage.
struct Way {
  double cost = kImpossible;
  int16_t kind = -1;
  int16_t first = 0;
  int16_t network = 0;  // before that stage
};

class Search {
 public:
  Search(const StageCosts& costs, const SplitRules& rules)
      : costs_(costs),
        rules_(rules),
        layers_(costs.num_layers()),
        networks_(static_cast<int>(rules.hops.size())) {
    for (const int count : rules_.counts) {
      strides_.push_back(combinations_);
      // More boxes than layers are of no use.
      limits_.push_back(std::min(count, layers_));
      combinations_ *= static_cast<size_t>(limits_.back()) + 1;
    }
    ways_.resize(combinations_ * static_cast<size_t>(networks_ * (layers_ + 1)));
  }

  std::optional<Split> Run() {
    std::vector<int> used(limits_.size(), 0);
    size_t best = ways_.size();
    size_t best_combination = 0;
    double least = kImpossible;
    for (size_t combination = 0; combination < combinations_; ++combination) {
      int total = 0;
      for (size_t kind = 0; kind < used.size(); ++kind) total += used[kind];
      if (total > 0) {
        for (int network = 0; network < networks_; ++network) {
          const size_t at = At(combination, network, layers_);
          if (rules_.num_stages > 0 && total != rules_.num_stages) continue;
          const double back = total > 1 ? rules_.returns[static_cast<size_t>(network)] : 0;
          if (ways_[at].cost + back < least) {
            least = ways_[at].cost + back;
            best = at;
            best_combination = combination;
          }
        }
      }
      if (MayGoOn(total)) Extend(combination, used, total);
      Next(used);
    }
    if (best == ways_.size()) return std::nullopt;
    return Trace(best_combination, best, least);
  }

 private:
  size_t At(size_t combination, int network, int layer) const {
    return (combination * static_cast<size_t>(networks_) + static_cast<size_t>(network)) *
               static_cast<size_t>(layers_ + 1) +
           static_cast<size_t>(layer);
  }

  /// The combinations in order: whoever uses one box more comes later.
  void Next(std::vector<int>& used) const {
    for (size_t kind = 0; kind < used.size(); ++kind) {
      if (used[kind] < limits_[kind]) {
        ++used[kind];
        return;
      }
      used[kind] = 0;
    }
  }

  bool MayGoOn(int total) const {
    return total < layers_ && (rules_.num_stages == 0 || total < rules_.num_stages);
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
        for (size_t kind = 0; kind < used.size(); ++kind) {
          if (used[kind] == limits_[kind]) continue;
          const int next = rules_.networks[kind];
          const double hop =
              total == 0 ? 0 : rules_.hops[static_cast<size_t>(network)][static_cast<size_t>(next)];
          if (hop == kImpossible) continue;
          Append(combination + strides_[kind], static_cast<int>(kind), first, network, total,
                 cost + hop);
        }
      }
    }
  }

  void Append(size_t to, int kind, int first, int network, int total, double cost) {
    // A box that follows wants a layer too.
    const int left = rules_.num_stages == 0 ? 0 : rules_.num_stages - total - 1;
    const int begin = rules_.num_stages > 0 && left == 0 ? layers_ : first + 1;
    for (int end = begin; end <= layers_ - left; ++end) {
      const double stage = costs_.At(kind, first, end);
      if (stage > rules_.most) continue;
      Way& way = ways_[At(to, rules_.networks[static_cast<size_t>(kind)], end)];
      if (cost + stage < way.cost) {
        way = {cost + stage, static_cast<int16_t>(kind), static_cast<int16_t>(first),
               static_cast<int16_t>(network)};
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
      combination -= strides_[static_cast<size_t>(way.kind)];
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
  std::vector<int> limits_;
  std::vector<size_t> strides_;
  size_t combinations_ = 1;
  std::vector<Way> ways_;
};

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
  CARAVAN_CHECK(static_cast<int>(rules.counts.size()) == costs.num_kinds() &&
                rules.networks.size() == rules.counts.size() &&
                rules.returns.size() == rules.hops.size());
  return Search(costs, rules).Run();
}

double SplitStates(int num_layers, const std::vector<int>& counts, int num_networks) {
  double states = (num_layers + 1.0) * num_networks;
  for (const int count : counts) states *= std::min(count, num_layers) + 1.0;
  return states;
}

}  // namespace caravan
