#ifndef CARAVAN_CLUSTER_FASTEST_SPLIT_H_
#define CARAVAN_CLUSTER_FASTEST_SPLIT_H_

// Which boxes hold which layers, in which order, so that step_time foretells most: the one search,
// of boxes that nobody owns yet (box_planner.h) and of workers that are there (planner.h). What a
// stage takes, and whether it fits, its callers say. Pure functions.

#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "cluster/box.h"
#include "cluster/plan_aim.h"
#include "cluster/stage_split.h"
#include "cluster/step_time.h"
#include "model/model_config.h"

namespace caravan {

/// Of the load's jobs those that decode with this aim.
DecodeLoad LoadFor(PlanAim aim, DecodeLoad load);

/// Equal boxes.
struct BoxKind {
  const Box* box = nullptr;  // whose network hops take
  int count = 1;
};

/// Seconds of a stage of layers [first, end) on a box of a kind, for a micro-batch of `rows`;
/// kImpossible where it does not fit.
using StageSeconds = absl::FunctionRef<double(int kind, int first, int end, double rows)>;

struct FastestSplitOptions {
  DecodeLoad load;             // jobs >= 1
  bool in_order = false;       // kinds are single boxes, and keep their order
  double below = kImpossible;  // seconds that are not worth a split
};

/// The split with the least seconds from one token of all decoding jobs to their next, as
/// PredictPipeline has them; that is its `cost`. Boxes may be left out. Exact: no other choice of
/// boxes, order (unless that is given) or split has less. nullopt: none fits, or has less than
/// options.below.
/// REQUIRES: layers; kinds.
std::optional<Split> FastestSplit(const ModelConfig& config, int num_layers,
                                  absl::Span<const BoxKind> kinds, StageSeconds seconds,
                                  const FastestSplitOptions& options);

/// States that FastestSplit goes through at most in any order, for each number of stages a few
/// times: what it takes grows with that.
double FastestSplitStates(int num_layers, absl::Span<const BoxKind> kinds);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_FASTEST_SPLIT_H_
