// Every interleaving, within bounds, of what can happen around a change of plans: workers that
// join, die, are missed or come back; orders, reports and steps that are on their way meanwhile,
// and come late, to nobody or twice. The real controller, driver and scheduler are driven; workers
// and links are a few lines here, which do what worker/worker.h and cluster/grpc_channel.h say.
//
// States are explored breadth first. A state is kept as the actions that lead to it and made again
// by replaying them, since neither the controller nor the driver can be copied.

#include <algorithm>
#include <deque>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bounded_queue.h"
#include "base/log.h"
#include "cluster/protocol_version.h"
#include "coordinator/cluster_controller.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/kv_rows.h"
#include "tests/coordinator/driver_testing.h"
#include "tests/coordinator/fake_cluster.h"

namespace caravan {
namespace {

constexpr absl::Duration kDeadline = absl::Seconds(60);  // for the driver's thread
constexpr int kCalmActions = 200;                        // from any state to the end of all jobs

/// What is explored. Each fault may come so often on one way.
struct Bounds {
  int workers = 2;
  int min_workers = 1;
  std::vector<int> job_tokens;
  int joins = 0;    // beyond the first of each worker
  int deaths = 0;   // of any workers
  int repeats = 0;  // steps that come home twice
};

class World {
 public:
  explicit World(const Bounds& bounds)
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
  ~World() { jobs_.clear(); }

  /// What can happen now. With `calm` only what happens by itself, where nothing fails.
  std::vector<std::string> Actions(bool calm) const {
    std::vector<std::string> actions;
    for (size_t i = 0; i < slots_.size(); ++i) {
      const Slot& slot = slots_[i];
      if (slot.life.has_value() && slot.life->alive && !slot.life->orders.empty()) {
        actions.push_back(absl::StrCat("o", i));
      }
      if (slot.life.has_value() && !slot.life->reports.empty())
        actions.push_back(absl::StrCat("r", i));
      if (slot.past.has_value() && !slot.past->reports.empty() && !calm) {
        actions.push_back(absl::StrCat("z", i));  // a report of a life before
      }
      if (slot.past.has_value()) actions.push_back(absl::StrCat("x", i));  // its call ends
      if (slot.life.has_value() && !slot.life->alive) actions.push_back(absl::StrCat("g", i));
      const bool here = slot.life.has_value() && slot.life->alive;
      const bool may_join =
          !here && !slot.past.has_value() && (slot.joins == 0 || calm || rejoins_ < bounds_.joins);
      if (may_join) actions.push_back(absl::StrCat("j", i));
      if (here && deaths_ < bounds_.deaths && !calm) actions.push_back(absl::StrCat("k", i));
    }
    for (size_t i = 0; i < flows_.size(); ++i) {
      if (!flows_[i].steps.empty()) actions.push_back(absl::StrCat("s", i));
    }
    if (last_home_.has_value() && repeats_ < bounds_.repeats && !calm) actions.push_back("d");
    if (!breakages_.empty()) actions.push_back("b");
    if (!quiets_.empty()) actions.push_back("q");
    if (TimeMatters()) actions.push_back("t");
    return actions;
  }

  void Do(const std::string& action) {
    const size_t i = action.size() > 1 ? static_cast<size_t>(action[1] - '0') : 0;
    switch (action[0]) {
      case 'j':
        Join(slots_[i]);
        break;
      case 'k':
        ++deaths_;
        slots_[i].life->alive = false;
        slots_[i].life->orders.clear();
        slots_[i].life->plan = 0;
        break;
      case 'g': {
        const Life life = *std::exchange(slots_[i].life, std::nullopt);
        controller_.Gone(life.id, life.incarnation);
        break;
      }
      case 'x': {
        const Life life = *std::exchange(slots_[i].past, std::nullopt);
        controller_.Gone(life.id, life.incarnation);
        break;
      }
      case 'o':
        Obey(*slots_[i].life, i);
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
        ++repeats_;
        Repeat(*std::exchange(last_home_, std::nullopt));
        break;
      case 'b': {
        const uint64_t plan = breakages_.front();
        breakages_.pop_front();
        Broken(plan);
        break;
      }
      case 'q': {
        const uint64_t plan = quiets_.front();
        quiets_.pop_front();
        controller_.PipelineQuiet(plan);
        break;
      }
      case 't':
        PassTime();
        break;
    }
    Settle();
    Check();
  }

  bool Finished() const {
    return std::all_of(jobs_.begin(), jobs_.end(), [](const Job& job) { return job.finished; });
  }
  bool Serving() const { return controller_.Status().serving(); }

  /// Equal for states from which the same can happen. Versions and ids count from the newest.
  std::string Key() const {
    std::string key;
    const auto plan = [&](uint64_t version) {
      return version == 0 ? std::string("-") : absl::StrCat(last_plan_ - version);
    };
    const auto life = [&](const std::optional<Life>& of) {
      if (!of.has_value()) return absl::StrAppend(&key, "none;");
      absl::StrAppend(&key, of->alive, of->expired, plan(of->plan), "/", of->stage,
                      plan(of->preparing), "o");
      for (const v1::WorkerOrder& order : of->orders) {
        absl::StrAppend(&key, order.has_load_stage()
                                  ? absl::StrCat("L", plan(order.load_stage().plan_version()))
                              : order.has_prepare_stage() ? absl::StrCat("P", plan(PlanOf(order)))
                                                          : absl::StrCat("D", plan(PlanOf(order))));
      }
      absl::StrAppend(&key, "r");
      for (const v1::WorkerReport& report : of->reports) {
        absl::StrAppend(&key, report.has_ready()
                                  ? absl::StrCat("R", plan(report.ready().plan_version()))
                              : report.has_prepared()
                                  ? absl::StrCat("P", plan(report.prepared().plan_version()))
                                  : absl::StrCat("F", plan(report.failure().plan_version())));
      }
      absl::StrAppend(&key, ";");
    };
    for (const Slot& slot : slots_) {
      life(slot.life);
      life(slot.past);
      absl::StrAppend(&key, slot.joins > 0, "|");
    }
    const v1::GetStatusResponse status = controller_.Status();
    absl::StrAppend(&key, plan(status.plan_version()), status.serving(), retry_due_);
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
    for (const uint64_t quiet : quiets_) absl::StrAppend(&key, " q", plan(quiet));
    absl::StrAppend(&key, " ", rejoins_, deaths_, repeats_, last_home_.has_value());
    return key;
  }

 private:
  /// Of a worker, from joining to the end of its call.
  struct Life {
    WorkerId id{};
    uint64_t incarnation = 0;
    bool alive = true;
    bool expired = false;    // silent for too long: no member any more
    uint64_t plan = 0;       // of the stage that it holds; 0: none
    uint64_t preparing = 0;  // what it gets ready for; 0: nothing
    int stage = 0;
    std::deque<v1::WorkerOrder> orders;    // on their way to it
    std::deque<v1::WorkerReport> reports;  // on their way from it
  };
  struct Slot {
    std::optional<Life> life;
    std::optional<Life> past;  // came back before its call had ended
    int joins = 0;
  };
  /// The links of one plan.
  struct Flow {
    uint64_t plan = 0;
    std::vector<std::pair<size_t, uint64_t>> stages;  // slot and incarnation
    std::unique_ptr<FakePipeline> pipeline;           // what the stages compute
    bool attached = false;                            // the driver sends into it
    bool lost = false;                                // a hop broke: nothing comes through
    std::deque<std::pair<v1::Step, size_t>> steps;    // and how many stages they have passed
    uint64_t last_home = 0;
  };
  struct Job {
    std::vector<int32_t> reply;
    std::unique_ptr<JobHandle> handle;
    std::vector<int32_t> tokens;
    bool finished = false;
  };

  PipelineDriver::Options DriverOptions() {
    PipelineDriver::Options options = SmallDriver();
    options.clock = &clock_;
    options.pipeline_timeout = absl::Hours(1);
    options.on_pipeline_broken = [this](uint64_t plan, const absl::Status&) { told_.Push(plan); };
    options.on_quiet = [this](uint64_t plan) { quiet_.Push(plan); };
    return options;
  }
  ClusterController::Options ControllerOptions() {
    ClusterController::Options options;
    options.cost = SmallCost();
    options.min_workers = bounds_.min_workers;
    options.context_tokens = 64;
    options.kv_tokens = 512;
    options.max_step_tokens = 32;
    options.incarnation = 1;
    options.clock = &clock_;
    return options;
  }

  Flow* FlowOf(uint64_t plan) {
    const auto flow = std::find_if(flows_.begin(), flows_.end(),
                                   [&](const Flow& each) { return each.plan == plan; });
    return flow == flows_.end() ? nullptr : &*flow;
  }
  Life* LifeOf(const std::pair<size_t, uint64_t>& stage) {
    std::optional<Life>& life = slots_[stage.first].life;
    return life.has_value() && life->alive && life->incarnation == stage.second ? &*life : nullptr;
  }

  absl::StatusOr<std::unique_ptr<ActivationChannel>> OpenFirstHop(uint64_t version) {
    Flow& flow = *FlowOf(version);
    if (LifeOf(flow.stages[0]) == nullptr) return absl::UnavailableError("nobody answers");
    FakePipeline::Options options;
    options.plan_version = version;
    options.num_stages = static_cast<int>(flow.stages.size());
    options.kv_block_tokens = kKvBlockTokens;
    flow.pipeline = std::make_unique<FakePipeline>(options);
    flow.attached = true;
    return std::move(flow.pipeline->Connect().first_hop);
  }

  void Join(Slot& slot) {
    if (slot.joins > 0) ++rejoins_;
    ++slot.joins;
    if (slot.life.has_value()) slot.past = std::move(slot.life);
    const auto index = static_cast<size_t>(&slot - slots_.data());
    Life& life = slot.life.emplace();
    life.incarnation = ++last_incarnation_;
    v1::Registration registration;
    registration.set_name(absl::StrCat("box-", index));
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

  static uint64_t PlanOf(const v1::WorkerOrder& order) {
    return order.has_load_stage()      ? order.load_stage().plan_version()
           : order.has_prepare_stage() ? order.prepare_stage().stage().plan_version()
                                       : order.drop_stage().plan_version();
  }

  /// The controller gives an order; a plan is known by its orders.
  void Order(size_t slot, uint64_t incarnation, const v1::WorkerOrder& order) {
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

  /// As Worker::Handle. What it loads or prepares is there at once; that it is ready is known
  /// later.
  void Obey(Life& life, size_t slot) {
    const v1::WorkerOrder order = life.orders.front();
    life.orders.pop_front();
    if (order.has_prepare_stage()) {
      life.preparing = PlanOf(order);
      life.reports.emplace_back().mutable_prepared()->set_plan_version(life.preparing);
      return;
    }
    const bool of_present = order.has_load_stage() || PlanOf(order) != life.preparing;
    life.preparing = 0;
    if (!of_present) return;
    life.plan = 0;
    if (!order.has_load_stage()) return;
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

  void Hear(Life& life) {
    v1::WorkerReport report = life.reports.front();
    life.reports.pop_front();
    report.set_incarnation(life.incarnation);
    const absl::Status heard = controller_.Report(life.id, report);
    // Somebody who is no member is told so, whatever it says.
    if (life.expired) {
      EXPECT_EQ(heard.code(), absl::StatusCode::kAborted);
    }
    if (report.has_failure() && !Serving()) retry_due_ = true;
  }

  /// The oldest step of a plan goes over one hop.
  void Move(Flow& flow) {
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
    v1::WorkerReport report;
    report.mutable_failure()->set_plan_version(flow.plan);
    report.mutable_failure()->set_code(static_cast<int>(absl::StatusCode::kUnavailable));
    report.mutable_failure()->set_message("the next hop is lost");
    previous->reports.push_back(report);
  }

  void ComeHome(Flow& flow) {
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

  void Repeat(const v1::Step& step) {
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

  void Broken(uint64_t plan) {
    const uint64_t before = controller_.Status().plan_version();
    controller_.PipelineBroken(plan, absl::UnavailableError("the first hop is lost"));
    if (before == plan) retry_due_ = true;
  }

  /// The next plan, if it is ready and the present pipeline runs dry for it; 0: there is none.
  uint64_t RunsDryFor() const {
    uint64_t next = 0;
    const v1::GetStatusResponse status = controller_.Status();
    for (const v1::WorkerStatus& worker : status.workers()) {
      if (!worker.has_preparation()) continue;
      if (!worker.preparation().done()) return 0;
      next = worker.preparation().progress().plan_version();
    }
    return next;
  }

  bool TimeMatters() const {
    return retry_due_ || std::any_of(slots_.begin(), slots_.end(), [](const Slot& slot) {
             return slot.life.has_value() && !slot.life->alive && !slot.life->expired;
           });
  }
  /// More than a heartbeat's timeout, in which who lives is heard.
  void PassTime() {
    for (int i = 0; i < 2; ++i) {
      clock_.Advance(absl::Seconds(3));
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

  /// 0: none.
  uint64_t AttachedPlan() const {
    return driver_.CheckServing().ok() ? controller_.Status().plan_version() : 0;
  }

  /// Lets the driver's thread send all that it can send now.
  void Settle() {
    for (Slot& slot : slots_) {
      if (slot.past.has_value()) slot.past->expired = true;  // another has its address
    }
    if (controller_.Status().plan_version() != 0) retry_due_ = false;
    const uint64_t plan = AttachedPlan();
    for (Flow& flow : flows_) flow.attached = flow.plan == plan;
    Flow* const flow = FlowOf(plan);
    if (flow != nullptr) {
      const absl::Duration deadline = SteadyClock().Now() + kDeadline;
      while (!TakeSent(*flow)) {
        ASSERT_LT(SteadyClock().Now(), deadline) << "a step is due, and is not sent";
        std::this_thread::yield();
      }
      if (flow->lost) flow->steps.clear();
    }
    const uint64_t next = RunsDryFor();
    if (next != quiet_for_ && next != 0 && plan != 0 && driver_.stats().steps_in_flight == 0) {
      const std::optional<uint64_t> quiet = quiet_.PopWithTimeout(kDeadline);
      ASSERT_TRUE(quiet.has_value()) << "nothing is under way, and nobody is told";
      quiets_.push_back(*quiet);
      quiet_for_ = next;
    }
    // What nothing can come of any more is forgotten.
    std::erase_if(flows_, [&](const Flow& each) {
      return !each.attached && each.steps.empty() &&
             each.plan != controller_.Status().plan_version() && each.plan != last_plan_ &&
             !Remembered(each.plan);
    });
  }
  bool Remembered(uint64_t plan) const {
    return std::any_of(slots_.begin(), slots_.end(), [plan](const Slot& slot) {
      return slot.life.has_value() &&
             (slot.life->plan == plan ||
              std::any_of(slot.life->orders.begin(), slot.life->orders.end(),
                          [plan](const v1::WorkerOrder& order) {
                            return order.load_stage().plan_version() == plan;
                          }));
    });
  }
  /// Whether no more can be sent: a step for each stage is under way, or one for each job.
  bool TakeSent(Flow& flow) {
    const auto in_flight = static_cast<size_t>(driver_.stats().steps_in_flight);
    std::map<uint64_t, std::vector<uint64_t>>& under_way = under_way_[flow.plan];
    while (sent_[flow.plan] < in_flight + flow.last_home) {
      const v1::Step step = flow.pipeline->Take();
      ++sent_[flow.plan];
      for (const v1::SequenceSlice& slice : step.slices()) {
        under_way[step.step_id()].push_back(slice.sequence_id());
      }
      flow.steps.emplace_back(step, 0);
    }
    size_t covered = 0;
    for (const auto& [step_id, sequences] : under_way) {
      if (step_id > flow.last_home) covered += sequences.size();
    }
    return in_flight == flow.stages.size() || covered == driver_.List().size() || RunsDryFor() != 0;
  }

  void Check() {
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
  }

  const Bounds bounds_;
  SimulatedClock clock_;
  BoundedQueue<uint64_t> told_{16};   // by the driver's thread
  BoundedQueue<uint64_t> quiet_{16};  // the same
  std::vector<Slot> slots_;
  std::deque<Flow> flows_;  // of the present plan, and of those before with something under way
  std::deque<uint64_t> breakages_;     // on their way to the controller
  std::deque<uint64_t> quiets_;        // the same: plans that have run dry
  uint64_t quiet_for_ = 0;             // the next plan of the last of them
  std::map<uint64_t, uint64_t> sent_;  // steps, by plan
  std::map<uint64_t, std::map<uint64_t, std::vector<uint64_t>>> under_way_;  // by plan and step
  std::optional<v1::Step> last_home_;
  uint64_t last_plan_ = 0;
  uint64_t last_incarnation_ = 100;
  int rejoins_ = 0;
  int deaths_ = 0;
  int repeats_ = 0;
  bool retry_due_ = false;  // a plan ended and the next one waits for the time
  std::vector<Job> jobs_;
  PipelineDriver driver_;
  ClusterController controller_;
};

std::string Text(const std::vector<std::string>& actions) {
  std::string text;
  for (const std::string& action : actions) absl::StrAppend(&text, action, " ");
  return text;
}

/// From here on nothing fails: all jobs end, and a pipeline serves.
void ExpectRecovers(World& world) {
  for (int i = 0; i < kCalmActions && !(world.Finished() && world.Serving()); ++i) {
    const std::vector<std::string> actions = world.Actions(/*calm=*/true);
    ASSERT_FALSE(actions.empty()) << "nothing can happen any more";
    // In turn, so that nothing waits for ever.
    world.Do(actions[static_cast<size_t>(i) % actions.size()]);
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_TRUE(world.Finished() && world.Serving()) << "no end in sight";
}

void Explore(const Bounds& bounds) {
  SilenceInfoLog();  // thousands of plans
  std::unordered_set<std::string> seen;
  std::deque<std::vector<std::string>> frontier = {{}};
  size_t transitions = 0;
  size_t deepest = 0;
  while (!frontier.empty()) {
    const std::vector<std::string> path = std::move(frontier.front());
    frontier.pop_front();
    SCOPED_TRACE(Text(path));
    World world(bounds);
    for (const std::string& action : path) world.Do(action);
    ASSERT_FALSE(::testing::Test::HasFailure());
    ++transitions;
    if (!seen.insert(world.Key()).second) continue;
    deepest = std::max(deepest, path.size());
    for (const std::string& action : world.Actions(/*calm=*/false)) {
      frontier.push_back(path);
      frontier.back().push_back(action);
    }
    ExpectRecovers(world);
    ASSERT_FALSE(::testing::Test::HasFailure());
  }
  std::cout << seen.size() << " states, " << transitions << " transitions, " << deepest
            << " actions at most" << std::endl;
}

TEST(PlanSwitchModelTest, OneWorkerThatDiesAndComesBackAndAStepThatComesTwice) {
  Explore(
      {.workers = 1, .min_workers = 1, .job_tokens = {2}, .joins = 1, .deaths = 1, .repeats = 1});
}

TEST(PlanSwitchModelTest, TwoJobsOverOneWorkerThatDies) {
  Explore({.workers = 1,
           .min_workers = 1,
           .job_tokens = {2, 2},
           .joins = 1,
           .deaths = 1,
           .repeats = 0});
}

TEST(PlanSwitchModelTest, TwoWorkersOfWhomOneDies) {
  Explore(
      {.workers = 2, .min_workers = 1, .job_tokens = {2}, .joins = 0, .deaths = 1, .repeats = 0});
}

}  // namespace
}  // namespace caravan
