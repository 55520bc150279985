#include "tests/coordinator/plan_switch_world.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cluster/protocol_version.h"
#include "gtest/gtest.h"
#include "kernels/kv_rows.h"
#include "tests/coordinator/fake_cluster.h"
#include "tests/coordinator/plan_messages.h"

namespace caravan {
namespace {

constexpr absl::Duration kDeadline = absl::Seconds(60);    // for the driver's thread
constexpr absl::Duration kHeartbeats = absl::Seconds(3);   // more often than the timeout
constexpr absl::Duration kMissed = absl::Seconds(6);       // longer than the timeout
constexpr absl::Duration kRetryDelay = absl::Seconds(5);   // of a plan that was not prepared
constexpr absl::Duration kReloadDelay = absl::Minutes(1);  // of one that was not loaded

std::string SlotName(size_t slot) { return absl::StrCat("box-", slot); }

}  // namespace

PlanSwitchWorld::PlanSwitchWorld(const WorldBounds& bounds)
    : bounds_(bounds),
      slots_(static_cast<size_t>(bounds.workers)),
      driver_(DriverOptions()),
      controller_(ControllerOptions(), &driver_,
                  [this](const ClusterController::PipelineEnds& ends) {
                    return OpenFirstHop(ends.plan_version);
                  }) {
  for (size_t i = 0; i < bounds.job_tokens.size(); ++i) {
    Job& job = jobs_.emplace_back();
    const JobSpec spec = ToyJob(2, bounds.job_tokens[i], static_cast<int>(i));
    job.reply = kModel.Reply(spec);
    job.handle = MustSubmit(&driver_, spec);
  }
}

PipelineDriver::Options PlanSwitchWorld::DriverOptions() {
  PipelineDriver::Options options = SmallDriver();
  options.clock = &clock_;
  options.pipeline_timeout = absl::Hours(100);
  options.on_pipeline_broken = [this](uint64_t plan, const absl::Status&) { told_.Push(plan); };
  options.on_quiet = [this](uint64_t plan, uint64_t next) { quiet_.Push({plan, next}); };
  return options;
}

ClusterController::Options PlanSwitchWorld::ControllerOptions() {
  ClusterController::Options options;
  options.cost = SmallCost();
  options.min_workers = bounds_.min_workers;
  options.context_tokens = 64;
  options.kv_tokens = 512;
  options.max_step_tokens = 32;
  options.incarnation = 1;
  options.retry_delay = kRetryDelay;
  options.clock = &clock_;
  return options;
}

std::vector<std::string> PlanSwitchWorld::Actions(bool calm) const {
  std::vector<std::string> actions;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    const bool here = slot.life.has_value() && slot.life->alive;
    if (here && !slot.life->orders.empty()) {
      actions.push_back(absl::StrCat("o", i));
      const v1::WorkerOrder& order = slot.life->orders.front();
      const bool may_fail = order.has_load_stage() || order.has_prepare_stage();
      if (may_fail && failures_ < bounds_.failures && !calm) {
        actions.push_back(absl::StrCat("f", i));
        actions.push_back(absl::StrCat("F", i));
      }
    }
    if (slot.life.has_value() && !slot.life->reports.empty()) {
      actions.push_back(absl::StrCat("r", i));
    }
    if (slot.past.has_value() && !slot.past->reports.empty() && !calm) {
      actions.push_back(absl::StrCat("z", i));
    }
    if (slot.past.has_value()) actions.push_back(absl::StrCat("x", i));
    if (slot.life.has_value() && !slot.life->alive) actions.push_back(absl::StrCat("g", i));
    // Who is first and who is next differ in name only.
    const bool is_turn = i == 0 || slots_[i - 1].joins > 0;
    const bool may_join = slot.joins == 0 ? is_turn : calm || rejoins_ < bounds_.joins;
    if (!here && !slot.past.has_value() && may_join) actions.push_back(absl::StrCat("j", i));
    if (here && deaths_ < bounds_.deaths && !calm) actions.push_back(absl::StrCat("k", i));
  }
  for (size_t i = 0; i < flows_.size(); ++i) {
    if (!flows_[i].steps.empty()) actions.push_back(absl::StrCat("s", i));
  }
  if (last_home_.has_value() && repeats_ < bounds_.repeats && !calm) actions.push_back("d");
  if (!breakages_.empty()) actions.push_back("b");
  if (!quiets_.empty()) actions.push_back("q");
  if (TimeMatters()) actions.push_back("t");
  if (FailureIsFresh()) actions.push_back("T");
  return actions;
}

void PlanSwitchWorld::Do(const std::string& action) {
  const size_t i = action.size() > 1 ? static_cast<size_t>(action[1] - '0') : 0;
  switch (action[0]) {
    case 'j':
      Join(slots_[i]);
      break;
    case 'k':
      Die(slots_[i]);
      break;
    case 'g':
      EndCall(slots_[i].life);
      break;
    case 'x':
      EndCall(slots_[i].past);
      break;
    case 'o':
      Obey(*slots_[i].life, i);
      break;
    case 'f':
      Obey(*slots_[i].life, i, absl::StatusCode::kUnavailable);
      break;
    case 'F':
      Obey(*slots_[i].life, i, absl::StatusCode::kNotFound);
      break;
    case 'r':
      Hear(*slots_[i].life);
      break;
    case 'z':
      Hear(*slots_[i].past);
      break;
    case 's':
      Move(flows_[i]);
      break;
    case 'd':
      Repeat(*std::exchange(last_home_, std::nullopt));
      break;
    case 'b': {
      const uint64_t plan = breakages_.front();
      breakages_.pop_front();
      Broken(plan);
      break;
    }
    case 'q': {
      const Quiet quiet = quiets_.front();
      quiets_.pop_front();
      RanDry(quiet);
      break;
    }
    case 't':
      PassTime(kMissed);
      break;
    case 'T':
      PassTime(retry_at_ - clock_.Now() + kHeartbeats);
      break;
  }
  Settle();
  Check();
}

bool PlanSwitchWorld::Finished() const {
  return std::all_of(jobs_.begin(), jobs_.end(), [](const Job& job) { return job.finished; });
}

std::string PlanSwitchWorld::Key() const {
  std::string key;
  const auto plan = [&](uint64_t version) {
    return version == 0 ? std::string("-") : absl::StrCat(last_plan_ - version);
  };
  const auto life = [&](const std::optional<Life>& of) {
    if (!of.has_value()) return absl::StrAppend(&key, "none;");
    absl::StrAppend(&key, of->alive, of->expired, plan(of->plan), "/", of->stage,
                    plan(of->preparing), "o");
    for (const v1::WorkerOrder& order : of->orders) {
      absl::StrAppend(&key, Kind(order), plan(PlanOf(order)));
    }
    absl::StrAppend(&key, "r");
    for (const v1::WorkerReport& report : of->reports) {
      absl::StrAppend(&key, Kind(report), plan(PlanOf(report)));
    }
    absl::StrAppend(&key, ";");
  };
  const v1::GetStatusResponse status = controller_.Status();
  for (size_t i = 0; i < slots_.size(); ++i) {
    life(slots_[i].life);
    life(slots_[i].past);
    const bool left_out =
        absl::StrContains(status.pipeline_state(), absl::StrCat("left out: ", SlotName(i)));
    // Who served last matters only where a plan may fail to load.
    absl::StrAppend(&key, slots_[i].joins > 0, left_out,
                    bounds_.failures > 0 && slots_[i].served_last, "|");
  }
  absl::StrAppend(&key, plan(status.plan_version()), status.serving(), retry_due_,
                  FailureIsFresh());
  // In order of joining, on which the split depends.
  for (const v1::WorkerStatus& worker : status.workers()) {
    absl::StrAppend(&key, ",", worker.address(), worker.state());
    if (!worker.has_preparation()) continue;
    absl::StrAppend(&key, "p", plan(worker.preparation().progress().plan_version()),
                    worker.preparation().done());
  }
  for (const Job& job : jobs_) absl::StrAppend(&key, " ", job.tokens.size(), job.finished);
  for (const Flow& flow : flows_) {
    absl::StrAppend(&key, " f", plan(flow.plan), flow.lost, flow.attached);
    for (const auto& [step, stage] : flow.steps) {
      absl::StrAppend(&key, "@", stage);
      for (const v1::SequenceSlice& slice : step.slices()) {
        absl::StrAppend(&key, "_", slice.sequence_id(), ".", slice.first_position());
      }
    }
  }
  for (const uint64_t broken : breakages_) absl::StrAppend(&key, " b", plan(broken));
  for (const auto& [quiet, next] : quiets_) absl::StrAppend(&key, " q", plan(quiet), plan(next));
  absl::StrAppend(&key, " ", rejoins_, deaths_, repeats_, failures_, last_home_.has_value());
  return key;
}

PlanSwitchWorld::Flow* PlanSwitchWorld::FlowOf(uint64_t plan) {
  const auto flow = std::find_if(flows_.begin(), flows_.end(),
                                 [&](const Flow& each) { return each.plan == plan; });
  return flow == flows_.end() ? nullptr : &*flow;
}

PlanSwitchWorld::Life* PlanSwitchWorld::LifeOf(const std::pair<size_t, uint64_t>& stage) {
  std::optional<Life>& life = slots_[stage.first].life;
  return life.has_value() && life->alive && life->incarnation == stage.second ? &*life : nullptr;
}

absl::StatusOr<std::unique_ptr<ActivationChannel>> PlanSwitchWorld::OpenFirstHop(uint64_t version) {
  Flow& flow = *FlowOf(version);
  if (LifeOf(flow.stages[0]) == nullptr) return absl::UnavailableError("nobody answers");
  FakePipeline::Options options;
  options.plan_version = version;
  options.num_stages = static_cast<int>(flow.stages.size());
  options.kv_block_tokens = kKvBlockTokens;
  flow.pipeline = std::make_unique<FakePipeline>(options);
  flow.attached = true;
  for (Slot& slot : slots_) slot.served_last = false;
  for (const auto& [slot, incarnation] : flow.stages) slots_[slot].served_last = true;
  return std::move(flow.pipeline->Connect().first_hop);
}

void PlanSwitchWorld::Join(Slot& slot) {
  if (slot.joins > 0) ++rejoins_;
  ++slot.joins;
  slot.served_last = false;  // that was another life
  if (slot.life.has_value()) slot.past = std::move(slot.life);
  const auto index = static_cast<size_t>(&slot - slots_.data());
  Life& life = slot.life.emplace();
  life.incarnation = ++last_incarnation_;
  v1::Registration registration;
  registration.set_name(SlotName(index));
  registration.set_address(absl::StrCat("10.0.0.", index + 1, ":7000"));
  registration.set_device("cpu");
  registration.set_memory_budget_bytes(10000);
  registration.set_num_threads(1);
  registration.set_protocol_version(kProtocolVersion);
  ClusterController::WorkerLink link;
  link.order = [this, index, incarnation = life.incarnation](const v1::WorkerOrder& order) {
    Order(index, incarnation, order);
  };
  link.hang_up = [] {};
  const auto id = controller_.Join(life.incarnation, registration, std::move(link));
  ASSERT_TRUE(id.ok()) << id.status();
  life.id = *id;
}

void PlanSwitchWorld::Die(Slot& slot) {
  ++deaths_;
  slot.life->alive = false;
  slot.life->orders.clear();
  slot.life->plan = 0;
}

void PlanSwitchWorld::EndCall(std::optional<Life>& of) {
  const Life life = *std::exchange(of, std::nullopt);
  controller_.Gone(life.id, life.incarnation);
}

void PlanSwitchWorld::Order(size_t slot, uint64_t incarnation, const v1::WorkerOrder& order) {
  const uint64_t plan = PlanOf(order);
  last_plan_ = std::max(last_plan_, plan);
  if (order.has_load_stage()) {
    if (FlowOf(plan) == nullptr) flows_.emplace_back().plan = plan;
    FlowOf(plan)->stages.emplace_back(slot, incarnation);
  }
  std::optional<Life>& life = slots_[slot].life;
  if (order.has_welcome() || !life.has_value() || !life->alive) return;
  if (life->incarnation == incarnation) life->orders.push_back(order);
}

void PlanSwitchWorld::Obey(Life& life, size_t slot, absl::StatusCode why) {
  const v1::WorkerOrder order = life.orders.front();
  life.orders.pop_front();
  const bool fails = why != absl::StatusCode::kOk;
  if (fails) ++failures_;
  const std::string message = absl::StrCat(SlotName(slot), " cannot have its stage");
  if (order.has_prepare_stage()) {
    life.preparing = fails ? 0 : PlanOf(order);
    if (fails) {
      life.reports.push_back(Failure(PlanOf(order), why, message));
    } else {
      life.reports.emplace_back().mutable_prepared()->set_plan_version(life.preparing);
    }
    return;
  }
  const bool of_present = order.has_load_stage() || PlanOf(order) != life.preparing;
  life.preparing = 0;
  if (!of_present) return;
  life.plan = 0;
  if (!order.has_load_stage()) return;
  if (fails) {
    life.reports.push_back(Failure(PlanOf(order), why, message));
    return;
  }
  life.plan = order.load_stage().plan_version();
  const Flow& flow = *FlowOf(life.plan);
  life.stage = static_cast<int>(
      std::find(flow.stages.begin(), flow.stages.end(), std::pair(slot, life.incarnation)) -
      flow.stages.begin());
  v1::WorkerReport report;
  report.mutable_ready()->set_plan_version(life.plan);
  report.mutable_ready()->set_kv_blocks(8);
  report.mutable_ready()->set_kv_block_tokens(kKvBlockTokens);
  life.reports.push_back(report);
}

void PlanSwitchWorld::Hear(Life& life) {
  v1::WorkerReport report = life.reports.front();
  life.reports.pop_front();
  report.set_incarnation(life.incarnation);
  if (report.has_failure()) {
    HearFailure(life, report);
    return;
  }
  const absl::Status heard = controller_.Report(life.id, report);
  // Somebody who is no member is told so, whatever it says.
  if (life.expired) {
    EXPECT_EQ(heard.code(), absl::StatusCode::kAborted);
  }
}

void PlanSwitchWorld::HearFailure(const Life& life, const v1::WorkerReport& report) {
  const v1::GetStatusResponse before = controller_.Status();
  const bool of_present = before.plan_version() == PlanOf(report);
  const bool of_next = std::any_of(
      before.workers().begin(), before.workers().end(), [&](const v1::WorkerStatus& worker) {
        return worker.has_preparation() &&
               worker.preparation().progress().plan_version() == PlanOf(report);
      });
  const bool for_now = report.failure().code() == static_cast<int>(absl::StatusCode::kUnavailable);
  const absl::Status heard = controller_.Report(life.id, report);
  if (life.expired) {
    EXPECT_EQ(heard.code(), absl::StatusCode::kAborted);
    return;
  }
  const v1::GetStatusResponse after = controller_.Status();
  if (!of_present) {
    EXPECT_EQ(after.plan_version(), before.plan_version());
    EXPECT_EQ(after.state(), before.state()) << "it is nothing to those who are served";
    // Whoever serves is not left out for what it has no room for beside its stage.
    const bool stays = for_now || life.plan == before.plan_version();
    if (of_next && stays) retry_at_ = std::max(retry_at_, clock_.Now() + kRetryDelay);
  } else if (for_now) {
    EXPECT_EQ(after.state(), v1::PIPELINE_STATE_WAITING);
    if (!before.serving()) retry_at_ = std::max(retry_at_, clock_.Now() + kReloadDelay);
  } else {
    EXPECT_NE(after.plan_version(), before.plan_version());
  }
  if (!after.serving()) retry_due_ = true;
}

void PlanSwitchWorld::Move(Flow& flow) {
  auto& [step, passed] = flow.steps.front();
  if (passed == flow.stages.size()) {
    ComeHome(flow);
    return;
  }
  const Life* const life = LifeOf(flow.stages[passed]);
  if (life != nullptr && life->plan == flow.plan) {
    ++passed;
    return;
  }
  // Refused, or nobody is there: the hop is broken, and the sender reports it.
  const size_t sender = passed;
  flow.steps.clear();
  flow.lost = true;
  if (sender == 0) {
    breakages_.push_back(flow.plan);
    return;
  }
  Life* const previous = LifeOf(flow.stages[sender - 1]);
  if (previous == nullptr || previous->plan != flow.plan) return;
  previous->reports.push_back(
      Failure(flow.plan, absl::StatusCode::kUnavailable, "the next hop is lost"));
}

void PlanSwitchWorld::ComeHome(Flow& flow) {
  const v1::Step step = flow.steps.front().first;
  flow.steps.pop_front();
  flow.pipeline->MarkHome();
  const absl::Status received = driver_.Receive(step);
  // Of the plan that serves each step counts, once; of others none.
  if (AttachedPlan() == flow.plan) {
    EXPECT_TRUE(received.ok()) << received;
    EXPECT_GT(step.step_id(), flow.last_home);
    flow.last_home = step.step_id();
    last_home_ = step;
  } else {
    EXPECT_EQ(received.code(), absl::StatusCode::kAborted);
  }
}

void PlanSwitchWorld::Repeat(const v1::Step& step) {
  ++repeats_;
  const bool current = AttachedPlan() == step.plan_version();
  const absl::Status received = driver_.Receive(step);
  EXPECT_EQ(received.code(),
            current ? absl::StatusCode::kFailedPrecondition : absl::StatusCode::kAborted);
  if (!current) return;
  // The driver gives such a pipeline up, and its thread says so.
  const std::optional<uint64_t> told = told_.PopWithTimeout(kDeadline);
  ASSERT_TRUE(told.has_value());
  breakages_.push_back(*told);
}

void PlanSwitchWorld::Broken(uint64_t plan) {
  const uint64_t before = controller_.Status().plan_version();
  controller_.PipelineBroken(plan, absl::UnavailableError("the first hop is lost"));
  if (before == plan) retry_due_ = true;
}

void PlanSwitchWorld::RanDry(const Quiet& quiet) {
  const uint64_t before = controller_.Status().plan_version();
  const int64_t under_way = driver_.stats().steps_in_flight;
  controller_.PipelineQuiet(quiet.first, quiet.second);
  if (controller_.Status().plan_version() != before) {
    EXPECT_EQ(under_way, 0) << "steps were dropped for a better plan";
  }
}

void PlanSwitchWorld::PassTime(absl::Duration time) {
  for (; time > absl::ZeroDuration(); time -= kHeartbeats) {
    clock_.Advance(kHeartbeats);
    for (Slot& slot : slots_) {
      if (!slot.life.has_value() || !slot.life->alive) continue;
      v1::WorkerReport report;
      report.mutable_heartbeat();
      report.set_incarnation(slot.life->incarnation);
      EXPECT_TRUE(controller_.Report(slot.life->id, report).ok());
    }
  }
  controller_.Tick();
  retry_due_ = false;
  for (Slot& slot : slots_) {
    if (slot.life.has_value() && !slot.life->alive) slot.life->expired = true;
  }
}

uint64_t PlanSwitchWorld::RunsDryFor() const {
  uint64_t next = 0;
  const v1::GetStatusResponse status = controller_.Status();
  for (const v1::WorkerStatus& worker : status.workers()) {
    if (!worker.has_preparation()) continue;
    if (!worker.preparation().done()) return 0;
    next = worker.preparation().progress().plan_version();
  }
  return next;
}

bool PlanSwitchWorld::TimeMatters() const {
  return retry_due_ || std::any_of(slots_.begin(), slots_.end(), [](const Slot& slot) {
           return slot.life.has_value() && !slot.life->alive && !slot.life->expired;
         });
}

uint64_t PlanSwitchWorld::AttachedPlan() const {
  return driver_.CheckServing().ok() ? controller_.Status().plan_version() : 0;
}

void PlanSwitchWorld::Settle() {
  for (Slot& slot : slots_) {
    if (slot.past.has_value()) slot.past->expired = true;  // another has its address
  }
  if (controller_.Status().plan_version() != 0) retry_due_ = false;
  const uint64_t plan = AttachedPlan();
  for (Flow& flow : flows_) flow.attached = flow.plan == plan;
  if (Flow* const flow = FlowOf(plan); flow != nullptr) {
    TakeSent(*flow);
    if (flow->lost) flow->steps.clear();
  }
  const uint64_t next = RunsDryFor();
  if (next != quiet_for_ && next != 0 && plan != 0 && driver_.stats().steps_in_flight == 0) {
    const std::optional<Quiet> quiet = quiet_.PopWithTimeout(kDeadline);
    ASSERT_TRUE(quiet.has_value()) << "nothing is under way, and nobody is told";
    EXPECT_EQ(*quiet, Quiet(plan, next));
    quiets_.push_back(*quiet);
    quiet_for_ = next;
  }
  Forget();
}

void PlanSwitchWorld::TakeSent(Flow& flow) {
  while (true) {
    const auto in_flight = static_cast<uint64_t>(driver_.stats().steps_in_flight);
    while (sent_[flow.plan] < in_flight + flow.last_home) {
      if (!TakeOne(flow)) return;
    }
    if (AllSent(flow) || !TakeOne(flow)) return;
  }
}

bool PlanSwitchWorld::TakeOne(Flow& flow) {
  const std::optional<v1::Step> step = flow.pipeline->TakeWithin(kDeadline);
  if (!step.has_value()) {
    ADD_FAILURE() << "a step is due, and is not sent";
    return false;
  }
  ++sent_[flow.plan];
  for (const v1::SequenceSlice& slice : step->slices()) {
    under_way_[flow.plan][step->step_id()].push_back(slice.sequence_id());
  }
  flow.steps.emplace_back(*step, 0);
  return true;
}

bool PlanSwitchWorld::AllSent(const Flow& flow) const {
  size_t covered = 0;
  if (const auto steps = under_way_.find(flow.plan); steps != under_way_.end()) {
    for (const auto& [step_id, sequences] : steps->second) {
      if (step_id > flow.last_home) covered += sequences.size();
    }
  }
  const auto sent = sent_.find(flow.plan);
  const uint64_t in_flight = sent == sent_.end() ? 0 : sent->second - flow.last_home;
  return in_flight == flow.stages.size() || covered == driver_.List().size() || RunsDryFor() != 0;
}

void PlanSwitchWorld::Forget() {
  const uint64_t present = controller_.Status().plan_version();
  std::erase_if(flows_, [&](const Flow& each) {
    return !each.attached && each.steps.empty() && each.plan != present &&
           each.plan != last_plan_ && !Remembered(each.plan);
  });
}

bool PlanSwitchWorld::Remembered(uint64_t plan) const {
  return std::any_of(slots_.begin(), slots_.end(), [plan](const Slot& slot) {
    return slot.life.has_value() && (slot.life->plan == plan ||
                                     std::any_of(slot.life->orders.begin(), slot.life->orders.end(),
                                                 [plan](const v1::WorkerOrder& order) {
                                                   return order.load_stage().plan_version() == plan;
                                                 }));
  });
}

void PlanSwitchWorld::Check() {
  for (Job& job : jobs_) {
    while (!job.finished) {
      const absl::StatusOr<JobUpdate> update = job.handle->Next(absl::ZeroDuration());
      ASSERT_TRUE(update.ok()) << "a job is lost: " << update.status();
      for (const ScoredToken& token : update->tokens) job.tokens.push_back(token.token_id);
      job.finished = update->finished;
      if (update->empty()) break;
    }
    ASSERT_LE(job.tokens.size(), job.reply.size());
    EXPECT_TRUE(std::equal(job.tokens.begin(), job.tokens.end(), job.reply.begin()))
        << "not the next token, or one twice";
    if (job.finished) {
      EXPECT_EQ(job.tokens, job.reply);
    }
  }
  const auto unfinished = static_cast<size_t>(
      std::count_if(jobs_.begin(), jobs_.end(), [](const Job& job) { return !job.finished; }));
  EXPECT_EQ(driver_.List().size(), unfinished);
  CheckStages();
}

void PlanSwitchWorld::CheckStages() const {
  const v1::GetStatusResponse status = controller_.Status();
  uint64_t next = 0;
  for (const v1::WorkerStatus& worker : status.workers()) {
    if (worker.has_preparation()) next = worker.preparation().progress().plan_version();
  }
  for (const Slot& slot : slots_) {
    if (!slot.life.has_value() || !slot.life->alive || !slot.life->orders.empty()) continue;
    const Life& life = *slot.life;
    EXPECT_TRUE(life.plan == 0 || life.plan == status.plan_version());
    EXPECT_TRUE(life.preparing == 0 || life.preparing == next);
  }
}

}  // namespace caravan
