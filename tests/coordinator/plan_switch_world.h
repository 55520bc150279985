#ifndef CARAVAN_TESTS_COORDINATOR_PLAN_SWITCH_WORLD_H_
#define CARAVAN_TESTS_COORDINATOR_PLAN_SWITCH_WORLD_H_

// A coordinator, its workers and all that is on its way between them, in which one thing happens at
// a time. The real controller, driver and scheduler are driven; workers and links are a few lines,
// which do what worker/worker.h and cluster/grpc_channel.h say. After each action it is checked
// that no job is lost, and no token wrong or twice.

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/bounded_queue.h"
#include "base/clock.h"
#include "coordinator/cluster_controller.h"
#include "tests/coordinator/driver_testing.h"

namespace caravan {

/// What may happen. Each fault may come so often on one way.
struct WorldBounds {
  int workers = 2;
  int min_workers = 1;
  std::vector<int> job_tokens;
  int joins = 0;     // beyond the first of each worker
  int deaths = 0;    // of any workers
  int repeats = 0;   // steps that come home twice
  int failures = 0;  // stages that are not prepared, or not loaded, for now or for good
};

class PlanSwitchWorld {
 public:
  explicit PlanSwitchWorld(const WorldBounds& bounds);
  ~PlanSwitchWorld() { jobs_.clear(); }

  /// What can happen now. With `calm` only what happens by itself, where nothing fails. A letter,
  /// and for which worker or link:
  ///
  ///   j  joins anew, or in turn as a new one      o  an order reaches it, and is obeyed
  ///   k  dies                                     f  the same, and its stage fails, for now
  ///   g  its call ends, since it died             F  the same, for good
  ///   x  that of a life before ends               r  a report of its reaches the coordinator
  ///   s  the oldest step goes over a hop          z  one of a life before
  ///   d  the last step comes home once more       b  the coordinator hears of a broken first hop
  ///   q  ... of a pipeline that has run dry       t  more than a heartbeat's timeout passes
  ///                                               T  so much that what failed is tried again
  std::vector<std::string> Actions(bool calm) const;
  void Do(const std::string& action);

  bool Finished() const;
  bool Serving() const { return controller_.Status().serving(); }

  /// Equal for states from which the same can happen. Versions and ids count from the newest.
  std::string Key() const;

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
    bool served_last = false;  // had a stage of the last plan that served
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
  /// A plan that has run dry, and for which other.
  using Quiet = std::pair<uint64_t, uint64_t>;

  PipelineDriver::Options DriverOptions();
  ClusterController::Options ControllerOptions();
  absl::StatusOr<std::unique_ptr<ActivationChannel>> OpenFirstHop(uint64_t version);
  Flow* FlowOf(uint64_t plan);
  Life* LifeOf(const std::pair<size_t, uint64_t>& stage);

  void Join(Slot& slot);
  void Die(Slot& slot);
  void EndCall(std::optional<Life>& of);
  /// The controller gives an order; a plan is known by its orders.
  void Order(size_t slot, uint64_t incarnation, const v1::WorkerOrder& order);
  /// As Worker::Handle. What it loads or prepares is there at once, or fails of `why`; that it is
  /// ready, or has failed, is known later.
  void Obey(Life& life, size_t slot, absl::StatusCode why = absl::StatusCode::kOk);
  void Hear(Life& life);
  /// A failure that is heard leaves what serves alone, unless it is of that plan.
  void HearFailure(const Life& life, const v1::WorkerReport& report);
  /// The oldest step of a plan goes over one hop.
  void Move(Flow& flow);
  void ComeHome(Flow& flow);
  void Repeat(const v1::Step& step);
  void Broken(uint64_t plan);
  void RanDry(const Quiet& quiet);
  /// In which who lives is heard.
  void PassTime(absl::Duration time);

  /// The next plan, if it is ready and the present pipeline runs dry for it; 0: there is none.
  uint64_t RunsDryFor() const;
  bool TimeMatters() const;
  bool FailureIsFresh() const { return clock_.Now() < retry_at_; }
  uint64_t AttachedPlan() const;  // 0: none

  /// Lets the driver's thread send all that it can send now.
  void Settle();
  void TakeSent(Flow& flow);
  bool TakeOne(Flow& flow);
  /// Whether no more can be sent: a step for each stage is under way, or one for each job.
  bool AllSent(const Flow& flow) const;
  /// What nothing can come of any more.
  void Forget();
  bool Remembered(uint64_t plan) const;
  void Check();
  /// Whoever has obeyed all orders holds no stage but one of the present plan, and gets ready for
  /// none but the next.
  void CheckStages() const;

  const WorldBounds bounds_;
  SimulatedClock clock_;
  BoundedQueue<uint64_t> told_{16};  // by the driver's thread
  BoundedQueue<Quiet> quiet_{16};    // the same
  std::vector<Slot> slots_;
  std::deque<Flow> flows_;  // of the present plan, and of those before with something under way
  std::deque<uint64_t> breakages_;     // on their way to the controller
  std::deque<Quiet> quiets_;           // the same
  uint64_t quiet_for_ = 0;             // the next plan of the last of them
  std::map<uint64_t, uint64_t> sent_;  // steps, by plan
  std::map<uint64_t, std::map<uint64_t, std::vector<uint64_t>>> under_way_;  // by plan and step
  std::optional<v1::Step> last_home_;
  uint64_t last_plan_ = 0;
  uint64_t last_incarnation_ = 100;
  int rejoins_ = 0;
  int deaths_ = 0;
  int repeats_ = 0;
  int failures_ = 0;
  bool retry_due_ = false;  // a plan ended and the next one waits for the time
  absl::Duration retry_at_ = -absl::InfiniteDuration();  // a split that failed, on the clock
  std::vector<Job> jobs_;
  PipelineDriver driver_;
  ClusterController controller_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_COORDINATOR_PLAN_SWITCH_WORLD_H_
