#include "coordinator/cluster_controller.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "cluster/planner.h"
#include "cluster/protocol_version.h"
#include "kernels/kv_rows.h"

namespace caravan {
namespace {

/// Whether two plans put the same layers on the same workers.
bool SameStages(const PipelinePlan& a, const PipelinePlan& b) {
  return std::equal(a.stages.begin(), a.stages.end(), b.stages.begin(), b.stages.end(),
                    [](const StagePlan& x, const StagePlan& y) {
                      return x.worker == y.worker && x.stage == y.stage;
                    });
}

/// The stage of the plan that `worker` has; -1: none.
int StageIn(const PipelinePlan& plan, WorkerId worker) {
  const auto stage =
      std::find_if(plan.stages.begin(), plan.stages.end(),
                   [worker](const StagePlan& each) { return each.worker == worker; });
  return stage == plan.stages.end() ? -1 : static_cast<int>(stage - plan.stages.begin());
}

/// Whether a worker that failed to load with `code` would fail again: the fault lies in what it has
/// or was asked for, not in somebody who was away.
bool IsPermanent(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kResourceExhausted:
      return true;
    default:
      return false;
  }
}

}  // namespace

ClusterController::ClusterController(Options options, PipelineDriver* driver,
                                     OpenFirstHop open_first_hop)
    : options_(std::move(options)),
      driver_(driver),
      open_first_hop_(std::move(open_first_hop)),
      membership_(*options_.clock, MembershipOptions{options_.heartbeat_timeout}),
      orders_({.model = options_.model,
               .cost = options_.cost,
               .context_tokens = options_.context_tokens,
               .max_step_tokens = options_.max_step_tokens,
               .incarnation = options_.incarnation,
               .identity = options_.identity},
              &membership_, &hops_),
      backoff_({options_.rejoin_delay, options_.clock}) {
  driver_->SetWaitingReason(PipelineState());
}

absl::StatusOr<WorkerId> ClusterController::Join(uint64_t incarnation,
                                                 const v1::Registration& registration,
                                                 WorkerLink link, const std::string& identity) {
  if (leaving_) return absl::UnavailableError("the coordinator is leaving");
  CARAVAN_RETURN_IF_ERROR(CheckFits(registration));
  CARAVAN_ASSIGN_OR_RETURN(const WorkerId id,
                           membership_.Join(incarnation, registration, identity));
  links_[id] = std::move(link);
  v1::WorkerOrder order;
  v1::Welcome& welcome = *order.mutable_welcome();
  welcome.set_worker_id(Number(id));
  welcome.set_heartbeat_interval_ms(
      static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.heartbeat_interval)));
  welcome.set_coordinator_incarnation(options_.incarnation);
  welcome.set_protocol_version(kProtocolVersion);
  SendOrder(id, std::move(order));
  LogInfo("worker_joined", {{"worker", DescribeWorker(*membership_.Find(id))},
                            {"address", registration.address()},
                            {"identity", identity},
                            {"memory_bytes", registration.memory_budget_bytes()}});
  LoseExpired();  // an earlier life of it may be among them
  backoff_.Joined(*membership_.Find(id));
  PlanSoon();
  Tick();
  return id;
}

absl::Status ClusterController::CheckFits(const v1::Registration& registration) const {
  if (registration.protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("worker ", registration.name(), " speaks version ",
                     registration.protocol_version(), " of the protocol, and the coordinator ",
                     kProtocolVersion, ": all processes of a cluster must be of one version"));
  }
  const uint64_t fingerprint = registration.model_fingerprint();
  if (fingerprint != 0 && fingerprint != options_.model.fingerprint()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "what --model names on worker ", registration.name(), " is not the coordinator's model (",
        "fingerprint ", absl::Hex(fingerprint, absl::kZeroPad16), ", and ",
        absl::Hex(options_.model.fingerprint(), absl::kZeroPad16), " here)"));
  }
  const absl::Status kv = CheckKvDType(options_.config.Mla(), KvDTypeOf(registration));
  if (!kv.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("--kv of worker ", registration.name(), ": ", kv.message()));
  }
  return absl::OkStatus();
}

absl::Status ClusterController::Report(WorkerId worker, const v1::WorkerReport& report) {
  CARAVAN_RETURN_IF_ERROR(membership_.Heard(worker, report.incarnation()));
  if (report.has_departure()) {
    const Member member = *membership_.Find(worker);
    CARAVAN_RETURN_IF_ERROR(membership_.Leave(worker, report.incarnation()));
    Lose(member, "it left", absl::StatusCode::kAborted);
    Tick();
    return absl::OkStatus();
  }
  if (report.has_heartbeat()) loads_[worker] = report.heartbeat().load();
  // Else it is of a plan that is over.
  if (const int stage = StageOf(worker); stage >= 0) ReportOfPlan(worker, stage, report);
  if (const int stage = NextStageOf(worker); stage >= 0) ReportOfNextPlan(worker, stage, report);
  return absl::OkStatus();
}

void ClusterController::ReportOfPlan(WorkerId worker, int stage, const v1::WorkerReport& report) {
  StageState& state = active_->stages[static_cast<size_t>(stage)];
  const uint64_t version = active_->plan.version;
  if (report.has_progress() && report.progress().plan_version() == version) {
    if (report.progress().loaded_bytes() > state.loaded_bytes) driver_->KeepWaiting();
    state.loaded_bytes = report.progress().loaded_bytes();
    state.load_bytes = report.progress().total_bytes();
  } else if (report.has_ready() && report.ready().plan_version() == version &&
             !state.ready.has_value()) {
    if (report.ready().kv_block_tokens() != kKvBlockTokens || report.ready().kv_blocks() == 0 ||
        report.ready().kv_blocks_on_disk() > report.ready().kv_blocks()) {
      EndPlanWithout(
          worker,
          absl::InvalidArgumentError(absl::StrCat(
              DescribeWorker(*membership_.Find(worker)), " offers ", report.ready().kv_blocks(),
              " KV blocks of ", report.ready().kv_block_tokens(), " tokens, ",
              report.ready().kv_blocks_on_disk(), " of them on disk, and a block must be of ",
              kKvBlockTokens, ": is it of another version?")),
          absl::StatusCode::kInvalidArgument);
      return;
    }
    state.ready = report.ready();
    const bool all_ready =
        std::all_of(active_->stages.begin(), active_->stages.end(),
                    [](const StageState& each) { return each.ready.has_value(); });
    if (all_ready && !active_->serving) StartServing();
  } else if (report.has_hop_invitation() && stage + 1 < std::ssize(active_->stages) &&
             report.hop_invitation().plan_version() == version) {
    v1::WorkerOrder order;
    order.mutable_join_hop()->set_plan_version(version);
    order.mutable_join_hop()->set_nccl_unique_id(report.hop_invitation().nccl_unique_id());
    SendOrder(active_->plan.stages[static_cast<size_t>(stage) + 1].worker, std::move(order));
  } else if (report.has_failure() && report.failure().plan_version() == version) {
    const absl::Status why = absl::UnavailableError(report.failure().message());
    const auto code = static_cast<absl::StatusCode>(report.failure().code());
    // Once loaded, a stage fails by its next hop, its card or its disk. Where nobody takes over
    // from the last, it goes on: only steps that want what cannot be read fail.
    if (state.ready.has_value() && absl::IsDataLoss(absl::Status(code, ""))) {
      cannot_read_[worker] = why;
      LeaveOutWhoCannotRead();
    } else if (!state.ready.has_value() && report.failure().unjoined() != v1::HOP_END_UNSPECIFIED) {
      GoWithoutNccl(stage, report.failure().unjoined(), why);
    } else if (!state.ready.has_value() && IsPermanent(code)) {
      EndPlanWithout(worker, why, code);
    } else {
      PipelineBroken(version, why);
    }
  }
}

void ClusterController::ReportOfNextPlan(WorkerId worker, int stage,
                                         const v1::WorkerReport& report) {
  const auto index = static_cast<size_t>(stage);
  NextPlan::StageState& state = next_->stages[index];
  const uint64_t version = next_->plan.version;
  if (report.has_progress() && report.progress().plan_version() == version) {
    state.progress = report.progress();
  } else if (report.has_prepared() && report.prepared().plan_version() == version) {
    state.prepared = true;
    if (!IsNextPrepared()) return;
    LogInfo("plan_prepared",
            {{"plan", version},
             {"seconds", absl::ToDoubleSeconds(options_.clock->Now() - next_->begun)}});
    driver_->Quiesce(active_->plan.version, version);
  } else if (report.has_failure() && report.failure().plan_version() == version) {
    const absl::Status why = absl::UnavailableError(report.failure().message());
    const auto code = static_cast<absl::StatusCode>(report.failure().code());
    LogWarning("plan_not_prepared", {{"plan", version}, {"why", why.message()}});
    // Of one that serves only this split is too much: beside its stage, or at this time.
    if (IsPermanent(code) && StageOf(worker) < 0) {
      LeaveOut(worker, next_->plan.stages[index], why, code);
    } else {
      RememberFailure(next_->plan, why, options_.retry_delay);
    }
    CancelNext();
    PlanSoon();
    Tick();
  }
}

void ClusterController::RememberFailure(const PipelinePlan& plan, const absl::Status& why,
                                        absl::Duration delay) {
  constexpr int kMostDoublings = 6;
  const int failures =
      failed_.has_value() && SameStages(failed_->plan, plan) ? failed_->failures + 1 : 1;
  failed_ = FailedSplit{
      plan, failures, options_.clock->Now() + delay * (1 << std::min(failures - 1, kMostDoublings)),
      std::string(why.message())};
}

bool ClusterController::IsDelayed(const PipelinePlan& plan) const {
  return failed_.has_value() && SameStages(failed_->plan, plan) &&
         options_.clock->Now() < failed_->not_before;
}

void ClusterController::Gone(WorkerId worker, uint64_t incarnation) {
  if (leaving_) return;
  const std::optional<Member> member = membership_.Find(worker);
  if (!member.has_value() || !membership_.Leave(worker, incarnation).ok()) return;
  Lose(*member, "its connection broke");
  Tick();
}

void ClusterController::Lose(const Member& member, const std::string& why, absl::StatusCode code) {
  LogInfo("worker_lost", {{"worker", DescribeWorker(member)}, {"why", why}});
  const auto link = links_.find(member.id);
  if (link != links_.end()) {
    link->second.hang_up();
    links_.erase(link);
  }
  drained_.erase(member.id);
  cannot_read_.erase(member.id);
  left_out_.erase(member.id);
  no_offloading_.erase(member.id);
  loads_.erase(member.id);
  hops_.Forget(member.id);
  backoff_.Lost(member, StageOf(member.id) >= 0 || NextStageOf(member.id) >= 0);
  // Now it is known why a link broke, if one did: nothing is gained by waiting.
  PlanSoon();
  if (NextStageOf(member.id) >= 0) CancelNext();
  const int stage = StageOf(member.id);
  if (stage < 0) return;
  EndPlan(absl::Status(
      code, absl::StrCat(DescribeWorker(member), " was lost (",
                         DescribeStage(active_->plan.stages[static_cast<size_t>(stage)].stage),
                         "): ", why)));
}

void ClusterController::LeaveOut(WorkerId worker, const StagePlan& stage, const absl::Status& why,
                                 absl::StatusCode code) {
  // It may lack no more than a copy of the pack, and serve with a stage that fits its memory.
  const bool only_offloading =
      stage.expert_bytes > 0 && code == absl::StatusCode::kFailedPrecondition;
  LogWarning(only_offloading ? "worker_does_not_offload" : "worker_left_out",
             {{"worker", DescribeWorker(*membership_.Find(worker))}, {"why", why.message()}});
  no_offloading_.erase(worker);
  (only_offloading ? no_offloading_ : left_out_)[worker] = std::string(why.message());
  PlanSoon();
}

void ClusterController::EndPlanWithout(WorkerId worker, const absl::Status& why,
                                       absl::StatusCode code) {
  LeaveOut(worker, active_->plan.stages[static_cast<size_t>(StageOf(worker))], why, code);
  EndPlan(why);
  Tick();
}

bool ClusterController::LeaveOutWhoCannotRead() {
  for (const auto& [worker, why] : cannot_read_) {
    if (StageOf(worker) < 0 || !MakePlan(UsableBut(worker)).ok()) continue;
    const absl::Status reason = why;
    const WorkerId id = worker;
    cannot_read_.erase(id);
    EndPlanWithout(id, reason, absl::StatusCode::kDataLoss);
    return true;
  }
  return false;
}

void ClusterController::GoWithoutNccl(int stage, v1::HopEnd end, const absl::Status& why) {
  const int first = end == v1::HOP_END_NEXT ? stage : stage - 1;
  const std::vector<StagePlan>& stages = active_->plan.stages;
  if (first < 0 || first + 1 >= std::ssize(stages)) {
    PipelineBroken(active_->plan.version, why);
    return;
  }
  hops_.RememberUnjoined(stages[static_cast<size_t>(first)].worker,
                         stages[static_cast<size_t>(first) + 1].worker, std::string(why.message()));
  EndPlan(why);
  PlanSoon();
  Tick();
}

std::vector<Member> ClusterController::Usable() const {
  std::vector<Member> usable = membership_.Members();
  std::erase_if(usable, [this](const Member& member) {
    return left_out_.contains(member.id) || drained_.contains(member.id) ||
           backoff_.Holds(member.id);
  });
  return usable;
}

std::vector<Member> ClusterController::UsableBut(WorkerId worker) const {
  std::vector<Member> usable = Usable();
  std::erase_if(usable, [worker](const Member& member) { return member.id == worker; });
  return usable;
}

int ClusterController::Missing() const {
  return (planned_once_ ? 1 : options_.min_workers) - static_cast<int>(Usable().size());
}

void ClusterController::PipelineBroken(uint64_t plan_version, const absl::Status& why) {
  if (!active_.has_value() || active_->plan.version != plan_version) return;
  // Long enough for those that served before to serve again meanwhile.
  if (!active_->serving) RememberFailure(active_->plan, why, 12 * options_.retry_delay);
  EndPlan(why);
  // Most often a worker died, and its own connection says so in a moment; else try again later.
  PlanSoon();
  plan_not_before_ = options_.clock->Now() + options_.retry_delay;
}

void ClusterController::PipelineQuiet(uint64_t plan_version, uint64_t next_version) {
  // One of before may be late: by now the plan may run on, or run dry for another one.
  if (!active_.has_value() || active_->plan.version != plan_version) return;
  if (!IsNextPrepared() || next_->plan.version != next_version) return;
  PipelinePlan plan = std::move(next_->plan);
  next_.reset();
  // Whoever has a stage of the new plan is told to load that, which replaces what it holds.
  std::vector<WorkerId> goes_on;
  for (const StagePlan& stage : plan.stages) goes_on.push_back(stage.worker);
  EndPlan(absl::AbortedError(absl::StrCat("plan ", plan.version, " takes its place")), goes_on);
  StartLoading(std::move(plan));
}

bool ClusterController::IsNextPrepared() const {
  return next_.has_value() &&
         std::all_of(next_->stages.begin(), next_->stages.end(),
                     [](const NextPlan::StageState& stage) { return stage.prepared; });
}

void ClusterController::PlanSoon() {
  plan_is_due_ = true;
  plan_not_before_ = -absl::InfiniteDuration();
}

absl::StatusOr<WorkerId> ClusterController::FindWorker(const std::string& worker) const {
  std::vector<WorkerId> found;
  for (const Member& member : membership_.Members()) {
    if (absl::StrCat(Number(member.id)) == worker) return member.id;
    if (member.registration.name() == worker) found.push_back(member.id);
  }
  if (found.empty()) return absl::NotFoundError(absl::StrCat("no worker is called ", worker));
  if (found.size() == 1) return found.front();
  return absl::InvalidArgumentError(
      absl::StrCat(found.size(), " workers are called ", worker, ": say its number"));
}

absl::StatusOr<WorkerId> ClusterController::Drain(const std::string& worker, bool undo) {
  CARAVAN_ASSIGN_OR_RETURN(const WorkerId id, FindWorker(worker));
  if (!undo && !drained_.contains(id)) {
    if (const absl::Status others = MakePlan(UsableBut(id)).status(); !others.ok()) {
      return absl::FailedPreconditionError(absl::StrCat("the others cannot do without ",
                                                        DescribeWorker(*membership_.Find(id)), ": ",
                                                        others.message()));
    }
    drained_.insert(id);
  } else if (undo && drained_.erase(id) == 0) {
    return id;
  }
  LogInfo(undo ? "worker_drained_no_more" : "worker_drained",
          {{"worker", DescribeWorker(*membership_.Find(id))}});
  PlanSoon();
  Tick();
  return id;
}

void ClusterController::Tick() {
  if (leaving_) return;
  LoseExpired();
  if (backoff_.EndHolds()) plan_is_due_ = true;
  if (plan_is_due_ && options_.clock->Now() >= plan_not_before_) MaybePlan();
  driver_->SetWaitingReason(PipelineState());
}

void ClusterController::LoseExpired() {
  for (const Member& member : membership_.Expire()) {
    const absl::Duration silence = options_.clock->Now() - member.last_heard;
    Lose(member, silence > options_.heartbeat_timeout
                     ? absl::StrCat("not heard of for ", absl::FormatDuration(silence))
                     : "another process joined from its address");
  }
}

void ClusterController::MaybePlan() {
  if (LeaveOutWhoCannotRead()) return;  // which has planned
  if (backoff_.HoldsAnybody() && (Missing() > 0 || !MakePlan(Usable()).ok())) backoff_.LetAllIn();
  const int missing = Missing();
  if (missing > 0) {
    waiting_reason_ =
        absl::StrCat("waiting for ", missing, " more worker", missing == 1 ? "" : "s", " to join");
    plan_is_due_ = false;
    return;
  }
  absl::StatusOr<PipelinePlan> plan = MakePlan(Usable());
  if (!active_.has_value()) {
    plan_is_due_ = false;
    if (plan.ok() && IsDelayed(*plan)) {
      // What could not be loaded was to be better than what served.
      std::vector<Member> served = Usable();
      std::erase_if(served,
                    [this](const Member& member) { return !served_last_.contains(member.id); });
      absl::StatusOr<PipelinePlan> before = MakePlan(served);
      if (before.ok()) plan = std::move(before);
    }
    if (plan.ok()) {
      StartLoading(*std::move(plan));
    } else {
      waiting_reason_ = std::string(plan.status().message());
      LogWarning("no_plan", {{"reason", waiting_reason_}});
    }
    return;
  }
  plan_is_due_ = false;
  if (!plan.ok() || SameStages(*plan, active_->plan)) {
    CancelNext();
    return;
  }
  if (next_.has_value() && SameStages(*plan, next_->plan)) return;
  if (active_->serving && IsDelayed(*plan)) {
    CancelNext();
    plan_is_due_ = true;
    plan_not_before_ = failed_->not_before;
    return;
  }
  // Another split is better now. Jobs that run go on over it.
  CancelNext();
  if (active_->serving) {
    StartPreparing(*std::move(plan));
  } else {
    EndPlan(absl::AbortedError("the pipeline is being planned anew"));
    StartLoading(*std::move(plan));
  }
}

absl::StatusOr<PipelinePlan> ClusterController::MakePlan(const std::vector<Member>& members) const {
  std::vector<PlannerWorker> workers;
  for (const Member& member : members) {
    workers.push_back({member.id, DescribeWorker(member),
                       static_cast<int64_t>(member.registration.memory_budget_bytes()),
                       KvDTypeOf(member.registration),
                       member.registration.offloads() && !no_offloading_.contains(member.id),
                       static_cast<int64_t>(member.registration.process_bytes()),
                       static_cast<int64_t>(member.registration.kv_disk_bytes()),
                       member.registration.on_card(), !member.registration.nccl_version().empty(),
                       BoxOf(member.registration)});
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
  planner.present = PresentStages();
  planner.present_by_time = active_.has_value() && active_->plan.forecast.has_value();
  return PlanStages(options_.cost, workers, planner);
}

std::vector<StagePlan> ClusterController::PresentStages() const {
  if (active_.has_value()) return active_->plan.stages;
  std::vector<Member> members = Usable();
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

void ClusterController::StartLoading(PipelinePlan plan) {
  planned_once_ = true;
  last_version_ = plan.version;
  active_.emplace();
  active_->plan = std::move(plan);
  active_->stages.resize(active_->plan.stages.size());
  const std::vector<StagePlan>& stages = active_->plan.stages;
  const std::optional<PlanForecast>& forecast = active_->plan.forecast;
  LogInfo("plan_made", {{"plan", active_->plan.version},
                        {"by", forecast.has_value() ? "times" : "memory"},
                        {"jobs", forecast.has_value() ? forecast->jobs : 0},
                        {"tokens_per_s", forecast.has_value() ? forecast->tokens_per_second : 0}});
  std::vector<v1::LoadStage> orders = orders_.Make(active_->plan, Usable());
  orders_.Log(active_->plan, orders);
  last_stages_.clear();
  for (size_t i = 0; i < stages.size(); ++i) {
    last_stages_.emplace_back(membership_.Find(stages[i].worker)->registration.name(),
                              stages[i].stage);
    v1::WorkerOrder order;
    *order.mutable_load_stage() = std::move(orders[i]);
    SendOrder(stages[i].worker, std::move(order));
  }
}

void ClusterController::StartPreparing(PipelinePlan plan) {
  last_version_ = plan.version;
  next_.emplace();
  next_->plan = std::move(plan);
  next_->stages.resize(next_->plan.stages.size());
  next_->begun = options_.clock->Now();
  LogInfo("plan_preparing", {{"plan", next_->plan.version}, {"stages", std::ssize(next_->stages)}});
  std::vector<v1::LoadStage> orders = orders_.Make(next_->plan, Usable());
  for (size_t i = 0; i < next_->stages.size(); ++i) {
    const WorkerId worker = next_->plan.stages[i].worker;
    v1::WorkerOrder order;
    *order.mutable_prepare_stage()->mutable_stage() = std::move(orders[i]);
    order.mutable_prepare_stage()->set_memory_bytes(static_cast<uint64_t>(MemoryBeside(worker)));
    SendOrder(worker, std::move(order));
  }
}

int64_t ClusterController::MemoryBeside(WorkerId worker) const {
  const int stage = StageOf(worker);
  const Member member = *membership_.Find(worker);
  // A card's memory is the stage's, and one that offloads leaves nothing.
  if (stage < 0 || member.registration.on_card()) return 0;
  const StagePlan& plan = active_->plan.stages[static_cast<size_t>(stage)];
  if (plan.expert_bytes > 0) return 0;
  const auto budget = static_cast<int64_t>(member.registration.memory_budget_bytes());
  return std::max<int64_t>(0, budget - plan.weight_bytes - plan.kv_bytes);
}

void ClusterController::CancelNext() {
  if (!next_.has_value()) return;
  LogInfo("plan_cancelled", {{"plan", next_->plan.version}});
  v1::WorkerOrder order;
  order.mutable_drop_stage()->set_plan_version(next_->plan.version);
  for (const StagePlan& stage : next_->plan.stages) SendOrder(stage.worker, order);
  next_.reset();
  driver_->GoOn();
}

void ClusterController::StartServing() {
  const uint64_t version = active_->plan.version;
  PipelineEnds ends;
  ends.plan_version = version;
  ends.first = *membership_.Find(active_->plan.stages.front().worker);
  ends.name = DescribeWorker(ends.first);
  ends.last = *membership_.Find(active_->plan.stages.back().worker);
  absl::StatusOr<std::unique_ptr<ActivationChannel>> first_hop = open_first_hop_(ends);
  if (!first_hop.ok()) {
    PipelineBroken(version, first_hop.status());
    return;
  }
  PipelineDriver::Pipeline pipeline;
  pipeline.plan_version = version;
  pipeline.num_stages = static_cast<int>(active_->stages.size());
  pipeline.kv_block_tokens = kKvBlockTokens;
  pipeline.kv_blocks = INT64_MAX;
  pipeline.near_kv_blocks = INT64_MAX;
  for (const StageState& stage : active_->stages) {
    pipeline.kv_blocks = std::min<int64_t>(pipeline.kv_blocks, stage.ready->kv_blocks());
    pipeline.near_kv_blocks =
        std::min(pipeline.near_kv_blocks,
                 int64_t{stage.ready->kv_blocks()} - int64_t{stage.ready->kv_blocks_on_disk()});
  }
  pipeline.max_step_tokens = options_.max_step_tokens;
  pipeline.drafts = active_->plan.stages.back().stage.drafts;
  std::vector<ArchiveContents> archives;
  for (const StageState& stage : active_->stages) {
    archives.push_back(ArchiveFromProto(stage.ready->kv_archive()));
  }
  pipeline.archive = CommonArchive(NameKvRoot(options_.model_identity), archives);
  pipeline.first_hop = *std::move(first_hop);
  LogInfo(
      "pipeline_serving",
      {{"plan", version},
       {"stages", pipeline.num_stages},
       {"seconds_without", absl::ToDoubleSeconds(options_.clock->Now() -
                                                 served_until_.value_or(options_.clock->Now()))},
       {"kv_tokens", pipeline.kv_blocks * kKvBlockTokens},
       {"archived_tokens", std::ssize(pipeline.archive.names) * kKvBlockTokens}});
  served_last_.clear();
  for (const StagePlan& stage : active_->plan.stages) {
    backoff_.Serves(stage.worker);
    served_last_.insert(stage.worker);
  }
  if (failed_.has_value() && SameStages(failed_->plan, active_->plan)) failed_.reset();
  if (failed_.has_value()) {
    plan_is_due_ = true;
    plan_not_before_ = std::max(plan_not_before_, failed_->not_before);
  }
  active_->serving = true;
  driver_->Attach(std::move(pipeline));
}

void ClusterController::EndPlan(const absl::Status& why, absl::Span<const WorkerId> goes_on) {
  LogInfo("pipeline_ended", {{"plan", active_->plan.version}, {"why", why.message()}});
  waiting_reason_ = std::string(why.message());
  if (active_->serving) served_until_ = options_.clock->Now();
  driver_->Detach(why);
  v1::WorkerOrder order;
  order.mutable_drop_stage()->set_plan_version(active_->plan.version);
  for (const StagePlan& stage : active_->plan.stages) {
    backoff_.Ends(stage.worker);
    if (!absl::c_linear_search(goes_on, stage.worker)) SendOrder(stage.worker, order);
  }
  active_.reset();
  CancelNext();
}

void ClusterController::SendOrder(WorkerId worker, v1::WorkerOrder order) {
  const auto link = links_.find(worker);
  if (link != links_.end()) link->second.order(std::move(order));
}

void ClusterController::Dismiss(const std::string& reason) {
  leaving_ = true;
  active_.reset();
  next_.reset();
  v1::WorkerOrder order;
  order.mutable_dismissal()->set_reason(reason);
  for (const auto& [id, link] : links_) link.order(order);
}

int ClusterController::StageOf(WorkerId worker) const {
  return active_.has_value() ? StageIn(active_->plan, worker) : -1;
}

int ClusterController::NextStageOf(WorkerId worker) const {
  return next_.has_value() ? StageIn(next_->plan, worker) : -1;
}

std::string ClusterController::PipelineState() const {
  std::string state;
  if (active_.has_value()) {
    state = active_->serving ? "serving" : "loading";
    if (next_.has_value()) {
      const auto prepared =
          std::count_if(next_->stages.begin(), next_->stages.end(),
                        [](const NextPlan::StageState& stage) { return stage.prepared; });
      absl::StrAppend(&state, "; another plan is prepared by ", prepared, " of ",
                      next_->stages.size(), " workers");
    } else if (failed_.has_value() && options_.clock->Now() < failed_->not_before) {
      absl::StrAppend(&state, "; another plan failed, and is tried again later: ", failed_->why);
    }
  } else {
    state = waiting_reason_.empty() ? "waiting for workers to join" : waiting_reason_;
  }
  for (const WorkerId id : drained_) {
    absl::StrAppend(&state, "; drained: ", DescribeWorker(*membership_.Find(id)));
  }
  for (const auto& [id, why] : left_out_) absl::StrAppend(&state, "; left out: ", why);
  for (const auto& [id, why] : no_offloading_) {
    absl::StrAppend(&state, StageOf(id) < 0 ? "; left out: " : "; not offloading: ", why);
  }
  if (backoff_.HoldsAnybody()) absl::StrAppend(&state, "; held back: ", backoff_.Describe());
  if (!active_.has_value() || !active_->plan.forecast.has_value()) return state;
  for (const Member& member : Usable()) {
    if (StageOf(member.id) >= 0 || NextStageOf(member.id) >= 0) continue;
    absl::StrAppend(&state, "; spare: ", DescribeWorker(member),
                    BoxOf(member.registration).has_value()
                        ? ", with which it would not be faster by 5%"
                        : ", of whose box nothing is known (caravan worker --box)");
  }
  return state;
}

v1::GetStatusResponse ClusterController::Status() const {
  v1::GetStatusResponse response;
  response.set_model(options_.model.directory());
  response.set_plan_version(active_.has_value() ? active_->plan.version : 0);
  response.set_pipeline_state(PipelineState());
  response.set_serving(active_.has_value() && active_->serving);
  if (active_.has_value() && active_->plan.forecast.has_value()) {
    const PlanForecast& foretold = *active_->plan.forecast;
    v1::PlanForecast& forecast = *response.mutable_forecast();
    forecast.set_jobs(static_cast<uint32_t>(std::min<int64_t>(foretold.jobs, UINT32_MAX)));
    forecast.set_tokens_per_s(foretold.tokens_per_second);
    forecast.set_tokens_per_s_alone(foretold.tokens_per_second_alone);
    forecast.set_slowest_worker_id(
        Number(active_->plan.stages[static_cast<size_t>(foretold.slowest_stage)].worker));
    forecast.set_bottleneck(BottleneckName(foretold.bottleneck));
  }
  for (const Member& member : membership_.Members()) {
    v1::WorkerStatus& worker = *response.add_workers();
    worker.set_worker_id(Number(member.id));
    worker.set_name(member.registration.name());
    worker.set_address(member.registration.address());
    worker.set_device(member.registration.device());
    worker.set_memory_budget_bytes(member.registration.memory_budget_bytes());
    worker.set_on_card(member.registration.on_card());
    worker.set_state(v1::WORKER_STATE_SPARE);
    worker.set_drained(drained_.contains(member.id));
    worker.set_held_back_s(absl::ToDoubleSeconds(backoff_.HoldsFor(member.id)));
    if (const auto load = loads_.find(member.id); load != loads_.end()) {
      *worker.mutable_load() = load->second;
    }
    if (const int next = NextStageOf(member.id); next >= 0) {
      const auto index = static_cast<size_t>(next);
      v1::Preparation& preparation = *worker.mutable_preparation();
      *preparation.mutable_progress() = next_->stages[index].progress;
      preparation.mutable_progress()->set_plan_version(next_->plan.version);
      *preparation.mutable_stage() = ToProto(next_->plan.stages[index].stage);
      preparation.set_done(next_->stages[index].prepared);
    }
    const int stage = StageOf(member.id);
    if (stage < 0) continue;
    const std::vector<StagePlan>& stages = active_->plan.stages;
    DescribeStageOf(options_.cost, stages[static_cast<size_t>(stage)],
                    active_->stages[static_cast<size_t>(stage)], KvDTypeOf(member.registration),
                    worker);
    if (stage + 1 < std::ssize(stages)) {
      const WorkerId next = stages[static_cast<size_t>(stage) + 1].worker;
      *worker.mutable_next() = hops_.Make(member, *membership_.Find(next));
    }
  }
  return response;
}

}  // namespace caravan
