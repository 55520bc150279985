#ifndef CARAVAN_CLUSTER_STAGE_SPLIT_H_
#define CARAVAN_CLUSTER_STAGE_SPLIT_H_

// Layers in a row, split into stages over boxes of some kinds in whatever order is cheapest. Knows
// nothing of what the costs are; box_planner makes them. Exact, by dynamic programming over (how
// many boxes of each kind are used, layers done, the network that the last one is in): time and
// memory grow with the product of the kinds' counts, or, where boxes keep their order, with their
// number times that of the stages. Kinds of at least as many boxes as layers never run out, and
// count as one however many there are. What bounds say of a state keeps most of them
// from being gone through: where the boxes that are left must take over at the latest, and what the
// layers that are left cost at least. Pure functions.

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"

namespace caravan {

inline constexpr double kImpossible = std::numeric_limits<double>::infinity();

/// What each possible stage costs: of layers [first, end) on a box of a kind.
class StageCosts {
 public:
  /// `cost` is called once for each stage. It may be kImpossible.
  StageCosts(int num_kinds, int num_layers,
             absl::FunctionRef<double(int kind, int first, int end)> cost);

  int num_kinds() const { return num_kinds_; }
  int num_layers() const { return num_layers_; }
  double At(int kind, int first, int end) const {
    return costs_[(static_cast<size_t>(kind) * width_ + static_cast<size_t>(first)) * width_ +
                  static_cast<size_t>(end)];
  }
  /// All that differ and are possible, ascending.
  std::vector<double> Values() const;

 private:
  int num_kinds_;
  int num_layers_;
  size_t width_;
  std::vector<double> costs_;
};

struct SplitRules {
  std::vector<int> counts;    // boxes of each kind; some may stay unused
  bool in_order = false;      // each kind is one box, and those that are used follow each other in
                              // this order; with num_stages
  std::vector<int> networks;  // of each kind, from 0 on: which row and column of `hops` is its own
  std::vector<std::vector<double>> hops;  // what a hop costs, from network to network
  std::vector<double> returns;            // what the way back costs from the last stage's network,
                                          // where there are several stages
  int num_stages = 0;                     // 0: any number
  double most = kImpossible;              // stages that cost more are not taken
  double below = kImpossible;             // neither are splits that do not cost less
};

struct PickedStage {
  int kind = 0;
  int first = 0;
  int end = 0;
};

struct Split {
  double cost = 0;  // the sum of all stages', hops' and the return's
  std::vector<PickedStage> stages;
};

/// The cheapest split of all layers; of equally cheap ones always the same. nullopt: none is
/// possible.
/// REQUIRES: counts, networks, hops and returns fit each other and `costs`.
std::optional<Split> CheapestSplit(const StageCosts& costs, const SplitRules& rules);

/// The least rules.most with which there is a split; nullopt: there is none, with whatever limit.
/// REQUIRES: as CheapestSplit.
std::optional<double> LeastMost(const StageCosts& costs, SplitRules rules);

/// Whether there might be a split within rules.most: false means that there is none, whatever hops
/// cost. Looks at (how many boxes of each kind are used) alone, so it is much cheaper.
/// REQUIRES: as CheapestSplit.
bool MaySplit(const StageCosts& costs, const SplitRules& rules);

/// States that CheapestSplit goes through at most, to be asked before.
double SplitStates(int num_layers, const std::vector<int>& counts, int num_networks);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_STAGE_SPLIT_H_
