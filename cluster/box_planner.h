#ifndef CARAVAN_CLUSTER_BOX_PLANNER_H_
#define CARAVAN_CLUSTER_BOX_PLANNER_H_

// Which boxes hold which layers, before anybody owns them: the split and the order for which
// step_time predicts most. (planner.h splits layers over workers that are there, by the same search
// under the rules of their memory.) Pure functions.

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "cluster/box_json.h"
#include "cluster/fastest_split.h"
#include "cluster/step_time.h"
#include "model/layer_cost.h"
#include "model/model_config.h"

namespace caravan {

/// A stage for each box that is used, in order; each points into `boxes`. Boxes may be left out.
/// Memory has room for the KV caches of all of the load's jobs, whatever the aim.
///
/// Exact: no other choice of boxes, order or split has a better PredictPipeline.
///
/// Errors: FailedPrecondition - the model does not fit; says of the split that lacks least which
///         stage lacks how much of what. InvalidArgument - the boxes differ too much for all orders
///         to be gone through, and what would be best of endlessly many takes more than there are,
///         or their networks differ too much even for that.
/// REQUIRES: layers; boxes; jobs >= 1.
absl::StatusOr<std::vector<BoxStage>> PlanBoxes(const ModelConfig& config, const ModelCost& cost,
                                                absl::Span<const BoxCount> boxes,
                                                const DecodeLoad& load, PlanAim aim);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_BOX_PLANNER_H_
