#include "coordinator/plan_progress.h"

#include <algorithm>
#include <cstdint>

#include "coordinator/archive_index.h"

namespace caravan {

int StageIn(const PipelinePlan& plan, WorkerId worker) {
  const auto stage =
      std::find_if(plan.stages.begin(), plan.stages.end(),
                   [worker](const StagePlan& each) { return each.worker == worker; });
  return stage == plan.stages.end() ? -1 : static_cast<int>(stage - plan.stages.begin());
}

bool ActivePlan::AllReady() const {
  return std::all_of(stages.begin(), stages.end(),
                     [](const StageState& stage) { return stage.ready.has_value(); });
}

PipelineDriver::Pipeline ActivePlan::MakePipeline(int64_t max_step_tokens,
                                                  const KvBlockName& archive_root) const {
  PipelineDriver::Pipeline pipeline;
  pipeline.plan_version = plan.version;
  pipeline.num_stages = static_cast<int>(stages.size());
  pipeline.kv_block_tokens = kKvBlockTokens;
  pipeline.kv_blocks = INT64_MAX;
  pipeline.near_kv_blocks = INT64_MAX;
  for (const StageState& stage : stages) {
    pipeline.kv_blocks = std::min<int64_t>(pipeline.kv_blocks, stage.ready->kv_blocks());
    pipeline.near_kv_blocks =
        std::min(pipeline.near_kv_blocks,
                 int64_t{stage.ready->kv_blocks()} - int64_t{stage.ready->kv_blocks_on_disk()});
  }
  pipeline.max_step_tokens = max_step_tokens;
  pipeline.drafts = plan.stages.back().stage.drafts;
  std::vector<ArchiveContents> archives;
  for (const StageState& stage : stages) {
    archives.push_back(ArchiveFromProto(stage.ready->kv_archive()));
  }
  pipeline.archive = CommonArchive(archive_root, archives);
  return pipeline;
}

void ActivePlan::SetArchiveCapacity(int stage, int64_t capacity) {
  stages[static_cast<size_t>(stage)].ready->mutable_kv_archive()->set_capacity(
      static_cast<uint64_t>(capacity));
}

int64_t ActivePlan::CommonArchiveCapacity() const {
  int64_t common = INT64_MAX;
  for (const StageState& each : stages) {
    common = std::min(common, ArchiveCapacity(each.ready->kv_archive()));
  }
  return common;
}

int64_t ActivePlan::MemoryBeside(const Member& worker) const {
  const int stage = StageIn(plan, worker.id);
  // A card's memory is the stage's, and one that offloads leaves nothing.
  if (stage < 0 || worker.registration.on_card()) return 0;
  const StagePlan& its = plan.stages[static_cast<size_t>(stage)];
  if (its.expert_bytes > 0) return 0;
  const auto budget = static_cast<int64_t>(worker.registration.memory_budget_bytes());
  return std::max<int64_t>(0, budget - its.weight_bytes - its.kv_bytes);
}

void ActivePlan::Describe(int stage, const Member& worker, const ModelCost& model,
                          v1::WorkerStatus& status) const {
  const auto index = static_cast<size_t>(stage);
  DescribeStageOf(model, plan.stages[index], stages[index], KvDTypeOf(worker.registration), status);
}

v1::PlanForecast ActivePlan::Forecast() const {
  const PlanForecast& foretold = *plan.forecast;
  v1::PlanForecast forecast;
  forecast.set_jobs(static_cast<uint32_t>(std::min<int64_t>(foretold.jobs, UINT32_MAX)));
  forecast.set_tokens_per_s(foretold.tokens_per_second);
  forecast.set_tokens_per_s_alone(foretold.tokens_per_second_alone);
  forecast.set_slowest_worker_id(
      Number(plan.stages[static_cast<size_t>(foretold.slowest_stage)].worker));
  forecast.set_bottleneck(BottleneckName(foretold.bottleneck));
  return forecast;
}

int NextPlan::NumPrepared() const {
  return static_cast<int>(std::count_if(stages.begin(), stages.end(),
                                        [](const StageState& stage) { return stage.prepared; }));
}

v1::Preparation NextPlan::Describe(int stage) const {
  const auto index = static_cast<size_t>(stage);
  v1::Preparation preparation;
  *preparation.mutable_progress() = stages[index].progress;
  preparation.mutable_progress()->set_plan_version(plan.version);
  *preparation.mutable_stage() = ToProto(plan.stages[index].stage);
  preparation.set_done(stages[index].prepared);
  return preparation;
}

}  // namespace caravan
