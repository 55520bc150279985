#include "coordinator/cluster_controller.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "cluster/protocol_version.h"
#include "coordinator/join_check.h"

namespace caravan {

ClusterController::ClusterController(Options options, PipelineDriver* driver,
                                     OpenFirstHop open_first_hop)
    : options_(std::move(options)),
      driver_(driver),
      open_first_hop_(std::move(open_first_hop)),
      membership_(*options_.clock, MembershipOptions{options_.heartbeat_timeout}),
      replicas_(options_.clock),
      orders_({.model = options_.model,
               .cost = options_.cost,
               .context_tokens = options_.context_tokens,
               .max_step_tokens = options_.max_step_tokens,
               .incarnation = options_.incarnation,
               .identity = options_.identity},
              &membership_, &hops_, &replicas_),
      roster_({options_.rejoin_delay, options_.clock}, &membership_),
      plans_({.config = options_.config,
              .cost = options_.cost,
              .context_tokens = options_.context_tokens,
              .kv_tokens = options_.kv_tokens,
              .max_step_tokens = options_.max_step_tokens,
              .aim = options_.aim},
             &roster_),
      splits_(options_.clock) {
  driver_->SetWaitingReason(PipelineState());
}

absl::StatusOr<WorkerId> ClusterController::Join(uint64_t incarnation,
                                                 const v1::Registration& registration,
                                                 WorkerLink link, const std::string& identity) {
  if (leaving_) return absl::UnavailableError("the coordinator is leaving");
  CARAVAN_RETURN_IF_ERROR(CheckCanJoin(registration, options_.model, options_.config));
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
  roster_.Joined(*membership_.Find(id));
  PlanSoon();
  Tick();
  return id;
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
  if (report.has_kv_archive()) HearOfArchive(worker, report.kv_archive());
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
    if (active_->AllReady() && !active_->serving) StartServing();
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
      roster_.Suspect(worker, why);
      LeaveOutSuspect();
    } else if (!state.ready.has_value() && report.failure().unjoined() != v1::HOP_END_UNSPECIFIED) {
      GoWithoutNccl(stage, report.failure().unjoined(), why);
    } else if (!state.ready.has_value() && PlanRoster::IsPermanent(code)) {
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
    if (!next_->AllPrepared()) return;
    LogInfo("plan_prepared",
            {{"plan", version},
             {"seconds", absl::ToDoubleSeconds(options_.clock->Now() - next_->begun)}});
    driver_->Quiesce(active_->plan.version, version);
  } else if (report.has_failure() && report.failure().plan_version() == version) {
    const absl::Status why = absl::UnavailableError(report.failure().message());
    const auto code = static_cast<absl::StatusCode>(report.failure().code());
    LogWarning("plan_not_prepared", {{"plan", version}, {"why", why.message()}});
    // Of one that serves only this split is too much: beside its stage, or at this time.
    if (PlanRoster::IsPermanent(code) && StageOf(worker) < 0) {
      roster_.LeaveOut(worker, next_->plan.stages[index], why, code);
    } else {
      splits_.Failed(next_->plan, why, options_.retry_delay);
    }
    CancelNext();
    PlanSoon();
    Tick();
  }
}

void ClusterController::HearOfArchive(WorkerId worker, const v1::KvArchiveNews& news) {
  replicas_.Hear(*membership_.Find(worker), news);
  const int stage = StageOf(worker);
  if (stage >= 0 && active_->stages[static_cast<size_t>(stage)].ready.has_value() &&
      news.plan_version() == active_->plan.version && news.capacity() > 0) {
    // Before the plan serves too, since it is said once.
    active_->SetArchiveCapacity(stage, news.capacity());
    const int64_t capacity = active_->serving ? active_->CommonArchiveCapacity() : 0;
    if (capacity > 0) driver_->SetArchiveCapacity(active_->plan.version, capacity);
  }
  RenewKvReplicas();
}

void ClusterController::RenewKvReplicas() {
  if (!active_.has_value() || !active_->serving || !replicas_.TakeChanged()) return;
  for (auto& [worker, order] :
       orders_.RenewKvReplicas(active_->plan, roster_.Usable(), active_->kv_archives)) {
    v1::WorkerOrder wrapped;
    *wrapped.mutable_set_kv_replica() = std::move(order);
    SendOrder(worker, std::move(wrapped));
  }
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
  loads_.erase(member.id);
  hops_.Forget(member.id);
  replicas_.Forget(member);
  roster_.Lost(member, StageOf(member.id) >= 0 || NextStageOf(member.id) >= 0);
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

void ClusterController::EndPlanWithout(WorkerId worker, const absl::Status& why,
                                       absl::StatusCode code) {
  roster_.LeaveOut(worker, active_->plan.stages[static_cast<size_t>(StageOf(worker))], why, code);
  PlanSoon();
  EndPlan(why);
  Tick();
}

bool ClusterController::LeaveOutSuspect() {
  for (const auto& [worker, lost] : roster_.suspects()) {
    if (StageOf(worker) < 0 || !CheckCanDoWithout(worker).ok()) continue;
    const absl::Status why = lost;
    EndPlanWithout(worker, why, absl::StatusCode::kDataLoss);
    return true;
  }
  return false;
}

absl::Status ClusterController::CheckCanDoWithout(WorkerId worker) const {
  return roster_
      .Needed([this](const std::vector<Member>& others) { return MakePlan(others).status(); },
              worker)
      .status();
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

void ClusterController::PipelineBroken(uint64_t plan_version, const absl::Status& why) {
  if (!active_.has_value() || active_->plan.version != plan_version) return;
  // Long enough for those that served before to serve again meanwhile.
  if (!active_->serving) splits_.Failed(active_->plan, why, 12 * options_.retry_delay);
  EndPlan(why);
  // Most often a worker died, and its own connection says so in a moment; else try again later.
  PlanSoon();
  plan_not_before_ = options_.clock->Now() + options_.retry_delay;
}

void ClusterController::PipelineQuiet(uint64_t plan_version, uint64_t next_version) {
  // One of before may be late: by now the plan may run on, or run dry for another one.
  if (!active_.has_value() || active_->plan.version != plan_version) return;
  if (!next_.has_value() || next_->plan.version != next_version || !next_->AllPrepared()) return;
  PipelinePlan plan = std::move(next_->plan);
  next_.reset();
  // Whoever has a stage of the new plan is told to load that, which replaces what it holds.
  std::vector<WorkerId> goes_on;
  for (const StagePlan& stage : plan.stages) goes_on.push_back(stage.worker);
  EndPlan(absl::AbortedError(absl::StrCat("plan ", plan.version, " takes its place")), goes_on);
  StartLoading(std::move(plan));
}

void ClusterController::PlanSoon() {
  plan_is_due_ = true;
  plan_not_before_ = -absl::InfiniteDuration();
  replicas_.NoteChange();
}

absl::StatusOr<WorkerId> ClusterController::Drain(const std::string& worker, bool undo) {
  CARAVAN_ASSIGN_OR_RETURN(const WorkerId id, roster_.Find(worker));
  if (!undo && !roster_.IsDrained(id)) {
    if (const absl::Status others = CheckCanDoWithout(id); !others.ok()) {
      return absl::FailedPreconditionError(absl::StrCat("the others cannot do without ",
                                                        DescribeWorker(*membership_.Find(id)), ": ",
                                                        others.message()));
    }
    roster_.Drain(id);
  } else if (undo && !roster_.EndDrain(id)) {
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
  if (roster_.EndHolds()) PlanSoon();
  if (plan_is_due_ && options_.clock->Now() >= plan_not_before_) MaybePlan();
  RenewKvReplicas();
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
  if (LeaveOutSuspect()) return;  // which has planned
  plan_is_due_ = false;
  absl::StatusOr<PipelinePlan> plan = MakePlanLettingIn();
  if (!active_.has_value()) {
    if (plan.ok() && splits_.Holds(*plan)) {
      // What could not be loaded was to be better than what served.
      std::vector<Member> served = roster_.Usable();
      std::erase_if(served,
                    [this](const Member& member) { return !served_last_.contains(member.id); });
      absl::StatusOr<PipelinePlan> before = MakePlan(served);
      if (before.ok()) plan = std::move(before);
    }
    if (plan.ok()) {
      StartLoading(*std::move(plan));
      return;
    }
    waiting_reason_ = std::string(plan.status().message());
    if (!absl::IsUnavailable(plan.status())) LogWarning("no_plan", {{"reason", waiting_reason_}});
    return;
  }
  if (!plan.ok() || SameSplit(*plan, active_->plan)) {
    CancelNext();
    return;
  }
  if (next_.has_value() && SameSplit(*plan, next_->plan)) return;
  if (splits_.Holds(*plan)) {
    // What serves, or is loaded in its stead, goes on.
    CancelNext();
    plan_is_due_ = true;
    plan_not_before_ = *splits_.until();
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

absl::Status ClusterController::CheckEnough(const std::vector<Member>& members) const {
  const int missing =
      (planned_once_ ? 1 : options_.min_workers) - static_cast<int>(std::ssize(members));
  if (missing <= 0) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("waiting for ", missing, " more worker", missing == 1 ? "" : "s", " to join"));
}

absl::StatusOr<PipelinePlan> ClusterController::MakePlanLettingIn() {
  absl::StatusOr<PipelinePlan> plan;
  const auto try_plan = [&](const std::vector<Member>& members) {
    CARAVAN_RETURN_IF_ERROR(CheckEnough(members));
    plan = MakePlan(members);
    return plan.status();
  };
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<WorkerId> needed, roster_.Needed(try_plan));
  if (needed.empty()) return plan;
  roster_.LetIn(needed);
  return MakePlan(roster_.Usable());
}

absl::StatusOr<PipelinePlan> ClusterController::MakePlan(const std::vector<Member>& members) const {
  return plans_.Make(members, active_.has_value() ? &active_->plan : nullptr);
}

void ClusterController::StartLoading(PipelinePlan plan) {
  planned_once_ = true;
  plans_.BeginLoading(plan, membership_);
  active_.emplace(std::move(plan));
  const std::vector<StagePlan>& stages = active_->plan.stages;
  const std::optional<PlanForecast>& forecast = active_->plan.forecast;
  LogInfo("plan_made", {{"plan", active_->plan.version},
                        {"by", forecast.has_value() ? "times" : "memory"},
                        {"jobs", forecast.has_value() ? forecast->jobs : 0},
                        {"tokens_per_s", forecast.has_value() ? forecast->tokens_per_second : 0}});
  std::vector<v1::LoadStage> orders = orders_.Make(active_->plan, roster_.Usable());
  orders_.Log(active_->plan, orders);
  for (const v1::LoadStage& order : orders) active_->kv_archives.push_back(order.kv_archives());
  for (size_t i = 0; i < stages.size(); ++i) {
    v1::WorkerOrder order;
    *order.mutable_load_stage() = std::move(orders[i]);
    SendOrder(stages[i].worker, std::move(order));
  }
}

void ClusterController::StartPreparing(PipelinePlan plan) {
  plans_.Begin(plan);
  next_.emplace(std::move(plan), options_.clock->Now());
  LogInfo("plan_preparing", {{"plan", next_->plan.version}, {"stages", std::ssize(next_->stages)}});
  std::vector<v1::LoadStage> orders = orders_.Make(next_->plan, roster_.Usable());
  for (size_t i = 0; i < next_->stages.size(); ++i) {
    const WorkerId worker = next_->plan.stages[i].worker;
    v1::WorkerOrder order;
    *order.mutable_prepare_stage()->mutable_stage() = std::move(orders[i]);
    order.mutable_prepare_stage()->set_memory_bytes(
        static_cast<uint64_t>(active_->MemoryBeside(*membership_.Find(worker))));
    SendOrder(worker, std::move(order));
  }
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
  PipelineDriver::Pipeline pipeline =
      active_->MakePipeline(options_.max_step_tokens, NameKvRoot(options_.model_identity));
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
  for (const StagePlan& stage : active_->plan.stages) served_last_.insert(stage.worker);
  roster_.Serves(active_->plan);
  splits_.Serves(active_->plan);
  if (const std::optional<absl::Duration> retry_at = splits_.until(); retry_at.has_value()) {
    plan_is_due_ = true;
    plan_not_before_ = std::max(plan_not_before_, *retry_at);
  }
  active_->serving = true;
  replicas_.NoteChange();
  driver_->Attach(std::move(pipeline));
}

void ClusterController::EndPlan(const absl::Status& why, absl::Span<const WorkerId> goes_on) {
  LogInfo("pipeline_ended", {{"plan", active_->plan.version}, {"why", why.message()}});
  waiting_reason_ = std::string(why.message());
  if (active_->serving) served_until_ = options_.clock->Now();
  driver_->Detach(why);
  v1::WorkerOrder order;
  order.mutable_drop_stage()->set_plan_version(active_->plan.version);
  roster_.Ends(active_->plan);
  for (const StagePlan& stage : active_->plan.stages) {
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
      absl::StrAppend(&state, "; another plan is prepared by ", next_->NumPrepared(), " of ",
                      next_->stages.size(), " workers");
    } else if (const std::string why = splits_.why(); !why.empty()) {
      absl::StrAppend(&state, "; another plan failed, and is tried again later: ", why);
    }
  } else {
    state = waiting_reason_.empty() ? "waiting for workers to join" : waiting_reason_;
  }
  absl::StrAppend(&state, roster_.Describe([this](WorkerId id) { return StageOf(id) >= 0; }));
  if (!active_.has_value() || !active_->plan.forecast.has_value()) return state;
  for (const Member& member : roster_.Usable()) {
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
  response.set_state(!active_.has_value() ? v1::PIPELINE_STATE_WAITING
                     : !active_->serving  ? v1::PIPELINE_STATE_LOADING
                                          : v1::PIPELINE_STATE_SERVING);
  if (active_.has_value() && active_->plan.forecast.has_value()) {
    *response.mutable_forecast() = active_->Forecast();
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
    roster_.Describe(member.id, worker);
    if (const auto load = loads_.find(member.id); load != loads_.end()) {
      *worker.mutable_load() = load->second;
    }
    if (const int next = NextStageOf(member.id); next >= 0) {
      *worker.mutable_preparation() = next_->Describe(next);
    }
    const int stage = StageOf(member.id);
    if (stage < 0) continue;
    const std::vector<StagePlan>& stages = active_->plan.stages;
    active_->Describe(stage, member, options_.cost, worker);
    if (stage + 1 < std::ssize(stages)) {
      const WorkerId next = stages[static_cast<size_t>(stage) + 1].worker;
      *worker.mutable_next() = hops_.Make(member, *membership_.Find(next));
    }
  }
  return response;
}

}  // namespace caravan
