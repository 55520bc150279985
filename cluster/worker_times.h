#ifndef CARAVAN_CLUSTER_WORKER_TIMES_H_
#define CARAVAN_CLUSTER_WORKER_TIMES_H_

// What stages take on workers whose boxes are known, and the split that is best by that: joins the
// planner's rules of memory (stage_needs.h) with the table of times (step_time.h) and its search
// (fastest_split.h). Pure functions.

#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "cluster/planner.h"
#include "cluster/stage_needs.h"

namespace caravan {

/// A stage for each of some workers, in order.
struct WorkerSplit {
  std::vector<const PlannerWorker*> workers;
  std::vector<int> ends;  // of their stages, in layers
};

/// Whether there is all that times are foretold from.
bool CanPlanByTime(absl::Span<const PlannerWorker> workers, const PlannerOptions& options);

/// The best split for options.aim, as planner.h says. nullopt: none fits, or there are too many
/// workers that differ.
/// REQUIRES: CanPlanByTime.
std::optional<WorkerSplit> SplitByTime(const PossibleStages& stages,
                                       absl::Span<const PlannerWorker> workers,
                                       const PlannerOptions& options);

/// What the table foretells of a plan with what its stages are given.
/// REQUIRES: CanPlanByTime; the plan's workers are `workers`, in order.
PlanForecast ForetellPlan(const ModelCost& cost, const PipelinePlan& plan,
                          absl::Span<const PlannerWorker* const> workers,
                          const PlannerOptions& options);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_WORKER_TIMES_H_
