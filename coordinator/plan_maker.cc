#include "coordinator/plan_maker.h"

#include <algorithm>

#include "cluster/planner.h"
#include "kernels/kv_rows.h"
#include "model/step_memory.h"

namespace caravan {

absl::StatusOr<PipelinePlan> PlanMaker::Make(const std::vector<Member>& members,
                                             const PipelinePlan* present) const {
  std::vector<PlannerWorker> workers;
  for (const Member& member : members) {
    const v1::Registration& registration = member.registration;
    workers.push_back(
        {.id = member.id,
         .name = DescribeWorker(member),
         .memory_budget_bytes = static_cast<int64_t>(registration.memory_budget_bytes()),
         .kv_dtype = KvDTypeOf(registration),
         .offloads = roster_->MayOffload(member),
         .process_bytes = static_cast<int64_t>(registration.process_bytes()),
         .kv_disk_bytes = static_cast<int64_t>(registration.kv_disk_bytes()),
         .on_card = registration.on_card(),
         .has_nccl = !registration.nccl_version().empty(),
         .box = BoxOf(registration)});
  }
  PlannerOptions planner;
  planner.version = last_version_ + 1;
  planner.context_tokens = WholeKvBlocks(options_.context_tokens);
  planner.kv_tokens = WholeKvBlocks(options_.kv_tokens);
  planner.step_memory = ComputeStepMemory(options_.config, options_.max_step_tokens);
  planner.card_step_memory =
      ComputeCardStepMemory(options_.config, options_.max_step_tokens, kKvBlockTokens);
  planner.config = &options_.config;
  planner.aim = options_.aim;
  planner.present = present != nullptr ? present->stages : LastStages();
  planner.present_by_time = present != nullptr && present->forecast.has_value();
  return PlanStages(options_.cost, workers, planner);
}

void PlanMaker::BeginLoading(const PipelinePlan& plan, const Membership& members) {
  Begin(plan);
  last_stages_.clear();
  for (const StagePlan& stage : plan.stages) {
    last_stages_.emplace_back(members.Find(stage.worker)->registration.name(), stage.stage);
  }
}

std::vector<StagePlan> PlanMaker::LastStages() const {
  std::vector<Member> members = roster_->Usable();
  std::vector<StagePlan> stages;
  for (const auto& [name, stage] : last_stages_) {
    const auto member = std::find_if(members.begin(), members.end(), [&](const Member& each) {
      return each.registration.name() == name;
    });
    if (member == members.end()) return {};
    stages.push_back({.worker = member->id, .stage = stage});
    members.erase(member);
  }
  return stages;
}

}  // namespace caravan
