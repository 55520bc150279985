#ifndef CARAVAN_COORDINATOR_PLAN_MAKER_H_
#define CARAVAN_COORDINATOR_PLAN_MAKER_H_

// Puts to the planner (cluster/planner.h) what members said of themselves when they joined, the
// model, and what a plan of theirs has to be better than. Numbers the plans.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/membership.h"
#include "cluster/pipeline_plan.h"
#include "cluster/plan_aim.h"
#include "coordinator/plan_roster.h"
#include "model/layer_cost.h"
#include "model/model_config.h"

namespace caravan {

/// Not thread-safe.
class PlanMaker {
 public:
  struct Options {
    ModelConfig config;
    ModelCost cost;
    int64_t context_tokens = 0;     // longest sequence
    int64_t kv_tokens = 0;          // the KV caches are to hold, if memory allows
    int64_t max_step_tokens = 512;  // rows that one step may carry
    PlanAim aim = PlanAim::kBulk;   // of plans by times
  };

  /// Borrows the roster.
  PlanMaker(Options options, const PlanRoster* roster)
      : options_(std::move(options)), roster_(roster) {}

  /// A plan of these members, with the next version. `present`: the one that is loaded or serves;
  /// null: there is none, and what was loaded last counts for it, on workers of the same names.
  /// Errors: FailedPrecondition - as PlanStages.
  absl::StatusOr<PipelinePlan> Make(const std::vector<Member>& members,
                                    const PipelinePlan* present) const;

  /// Its workers are told of this plan: later ones have higher versions.
  void Begin(const PipelinePlan& plan) { last_version_ = plan.version; }
  /// Begin, and it is the plan that was loaded last. REQUIRES: its workers are members.
  void BeginLoading(const PipelinePlan& plan, const Membership& members);

 private:
  std::vector<StagePlan> LastStages() const;

  const Options options_;
  const PlanRoster* const roster_;
  uint64_t last_version_ = 0;
  // Of the plan that was loaded last, by worker's name.
  std::vector<std::pair<std::string, StageSpec>> last_stages_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_PLAN_MAKER_H_
