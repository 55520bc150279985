#ifndef CARAVAN_COORDINATOR_PLAN_PROGRESS_H_
#define CARAVAN_COORDINATOR_PLAN_PROGRESS_H_

// How far the workers of a plan are: of the present one, and of the one that is to take its place.
// Values, of what workers reported; and the same as people are told of it.

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/kv_block_name.h"
#include "cluster/membership.h"
#include "cluster/pipeline_plan.h"
#include "coordinator/pipeline_driver.h"
#include "coordinator/stage_status.h"
#include "model/layer_cost.h"

namespace caravan {

/// The stage of the plan that `worker` has; -1: none.
int StageIn(const PipelinePlan& plan, WorkerId worker);

/// A plan that is being loaded, or serves.
struct ActivePlan {
  explicit ActivePlan(PipelinePlan its_plan)
      : plan(std::move(its_plan)), stages(plan.stages.size()) {}

  bool AllReady() const;
  /// What it serves with, but for the first hop: of what stages differ in, what they have in
  /// common. `archive_root`: of the archives' contents. REQUIRES: AllReady().
  PipelineDriver::Pipeline MakePipeline(int64_t max_step_tokens,
                                        const KvBlockName& archive_root) const;
  /// The archive of stage `stage` has room for so many blocks now. REQUIRES: that one is ready.
  void SetArchiveCapacity(int stage, int64_t capacity);
  /// For how many blocks the archives of all stages have room; 0 where one has none.
  /// REQUIRES: AllReady().
  int64_t CommonArchiveCapacity() const;
  /// What the stage of this worker leaves of its memory for weights; of one without a stage 0.
  int64_t MemoryBeside(const Member& worker) const;
  /// Stage `stage`, which `worker` has.
  void Describe(int stage, const Member& worker, const ModelCost& model,
                v1::WorkerStatus& status) const;
  /// What the plan's times foretell. REQUIRES: it was made by times.
  v1::PlanForecast Forecast() const;

  PipelinePlan plan;
  std::vector<StageState> stages;           // by stage
  std::vector<v1::KvArchives> kv_archives;  // likewise: what they were told last
  bool serving = false;
};

/// A plan that is being prepared while another one serves.
struct NextPlan {
  struct StageState {
    v1::StageProgress progress;
    bool prepared = false;
  };
  NextPlan(PipelinePlan its_plan, absl::Duration now)
      : plan(std::move(its_plan)), stages(plan.stages.size()), begun(now) {}

  /// Stages that are.
  int NumPrepared() const;
  bool AllPrepared() const { return NumPrepared() == static_cast<int>(stages.size()); }
  v1::Preparation Describe(int stage) const;

  PipelinePlan plan;
  std::vector<StageState> stages;  // by stage
  absl::Duration begun;            // on the clock
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_PLAN_PROGRESS_H_
