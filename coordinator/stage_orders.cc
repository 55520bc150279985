#include "coordinator/stage_orders.h"

#include <utility>

#include "absl/algorithm/container.h"
#include "base/log.h"
#include "cluster/planner.h"
#include "cluster/stage_needs.h"

namespace caravan {
namespace {

/// `member` is told by plan `plan` who keeps its KV blocks.
void LogReplica(uint64_t plan, const Member& member, const v1::KvArchives& archives) {
  if (!member.registration.kv_replicates()) return;
  if (archives.has_replica()) {
    LogInfo("kv_replica", {{"plan", plan},
                           {"worker", DescribeWorker(member)},
                           {"to", archives.replica().name()},
                           {"blocks", archives.replica_blocks()}});
  } else {
    LogWarning(
        "kv_no_replica",
        {{"plan", plan},
         {"worker", DescribeWorker(member)},
         {"why", "no other worker that plans may use has an archive in its format, with room"}});
  }
}

}  // namespace

StageOrders::StageOrders(Options options, const Membership* members, const HopRules* hops,
                         const KvReplicaRules* replicas)
    : options_(std::move(options)), members_(members), hops_(hops), replicas_(replicas) {}

std::vector<v1::LoadStage> StageOrders::Make(const PipelinePlan& plan,
                                             const std::vector<Member>& usable) const {
  const std::vector<v1::KvArchives> archives =
      PlanKvArchives(KvArchiveMembersOf(plan, usable), *replicas_);
  std::vector<v1::LoadStage> orders;
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    v1::LoadStage& order = orders.emplace_back(MakeOne(plan, i));
    const WorkerId worker = plan.stages[i].worker;
    if (members_->Find(worker)->registration.kv_archive_bytes() > 0) {
      *order.mutable_kv_archives() = archives[i];
    }
    for (const Member& member : members_->Members()) {
      if (member.id == worker || !member.registration.shares_files()) continue;
      *order.add_model_sources() = ToPeer(member);
    }
  }
  return orders;
}

v1::LoadStage StageOrders::MakeOne(const PipelinePlan& plan, size_t i) const {
  const StagePlan& stage = plan.stages[i];
  v1::LoadStage load;
  load.set_plan_version(plan.version);
  *load.mutable_stage() = ToProto(stage.stage);
  *load.mutable_model() = options_.model;
  load.set_kv_budget_bytes(static_cast<uint64_t>(stage.kv_bytes));
  load.set_kv_disk_bytes(static_cast<uint64_t>(stage.kv_disk_bytes));
  load.set_max_step_tokens(static_cast<uint32_t>(options_.max_step_tokens));
  if (stage.expert_bytes > 0) {
    load.set_expert_budget_bytes(static_cast<uint64_t>(stage.expert_bytes));
    load.set_resident_budget_bytes(static_cast<uint64_t>(ResidentBudget(stage)));
  }
  const Member member = *members_->Find(stage.worker);
  if (i > 0) {
    const Member previous = *members_->Find(plan.stages[i - 1].worker);
    *load.mutable_previous() = hops_->Make(member, previous);
    load.set_sender_incarnation(previous.incarnation);
    load.set_sender_identity(previous.identity);
  } else {
    load.set_sender_incarnation(options_.incarnation);
    load.set_sender_identity(options_.identity);
  }
  if (i + 1 < plan.stages.size()) {
    const Member next = *members_->Find(plan.stages[i + 1].worker);
    load.set_next_address(next.registration.address());
    load.set_next_incarnation(next.incarnation);
    load.set_next_name(DescribeWorker(next));
    load.set_next_identity(next.identity);
    *load.mutable_next() = hops_->Make(member, next);
  }
  return load;
}

std::vector<std::pair<WorkerId, v1::SetKvReplica>> StageOrders::RenewKvReplicas(
    const PipelinePlan& plan, const std::vector<Member>& usable,
    std::vector<v1::KvArchives>& told) const {
  const KvArchiveMembers members = KvArchiveMembersOf(plan, usable);
  std::vector<v1::KvArchives> archives = PlanKvArchives(members, *replicas_, told);
  std::vector<std::pair<WorkerId, v1::SetKvReplica>> orders;
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    v1::KvArchives& now = archives[i];
    if (SameReplica(told[i], now)) continue;
    if (told[i].replica().incarnation() != now.replica().incarnation()) {
      LogReplica(plan.version, members.ring[i].member, now);
    }
    told[i] = now;
    v1::SetKvReplica order;
    order.set_plan_version(plan.version);
    now.clear_peers();
    *order.mutable_kv_archives() = std::move(now);
    orders.emplace_back(plan.stages[i].worker, std::move(order));
  }
  return orders;
}

KvArchiveMembers StageOrders::KvArchiveMembersOf(const PipelinePlan& plan,
                                                 const std::vector<Member>& usable) const {
  KvArchiveMembers members;
  for (const StagePlan& stage : plan.stages) {
    const Member member = *members_->Find(stage.worker);
    members.ring.push_back({member, stage.stage,
                            KvCacheBytes(options_.cost.Of(stage.stage),
                                         KvDTypeOf(member.registration), kKvBlockTokens)});
  }
  for (const Member& member : members_->Members()) {
    const auto is_it = [&member](const auto& each) { return each.worker == member.id; };
    if (absl::c_any_of(plan.stages, is_it)) continue;
    const bool is_usable =
        absl::c_any_of(usable, [&member](const Member& each) { return each.id == member.id; });
    (is_usable ? members.spares : members.others).push_back(member);
  }
  return members;
}

int64_t StageOrders::ResidentBudget(const StagePlan& stage) const {
  const DType kv_dtype = KvDTypeOf(members_->Find(stage.worker)->registration);
  return stage.weight_bytes + KvCacheBytes(options_.cost.Of(stage.stage), kv_dtype,
                                           WholeKvBlocks(options_.context_tokens));
}

void StageOrders::Log(const PipelinePlan& plan, const std::vector<v1::LoadStage>& orders) const {
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    const StagePlan& stage = plan.stages[i];
    const Member member = *members_->Find(stage.worker);
    LogInfo("stage_planned", {{"plan", plan.version},
                              {"worker", DescribeWorker(member)},
                              {"stage", DescribeStage(stage.stage)},
                              {"weight_bytes", stage.weight_bytes},
                              {"kv_bytes", stage.kv_bytes},
                              {"kv_disk_bytes", stage.kv_disk_bytes},
                              {"expert_bytes", stage.expert_bytes}});
    LogReplica(plan.version, member, orders[i].kv_archives());
    if (i + 1 == plan.stages.size()) break;
    const v1::Hop& hop = orders[i].next();
    LogInfo("hop_planned", {{"plan", plan.version},
                            {"from", DescribeWorker(member)},
                            {"to", orders[i].next_name()},
                            {"transport", hop.by_nccl() ? "nccl" : "tcp"},
                            {"why", hop.why()}});
    const Member next = *members_->Find(plan.stages[i + 1].worker);
    if (hop.by_nccl() && WhyTrusted(member.registration, next.registration).empty()) {
      LogWarning("hop_not_encrypted", {{"plan", plan.version},
                                       {"from", DescribeWorker(member)},
                                       {"to", orders[i].next_name()},
                                       {"why", "both ends insist on NCCL"}});
    }
  }
}

}  // namespace caravan
