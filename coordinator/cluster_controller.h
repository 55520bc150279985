#ifndef CARAVAN_COORDINATOR_CLUSTER_CONTROLLER_H_
#define CARAVAN_COORDINATOR_CLUSTER_CONTROLLER_H_

// Who is there, and which pipeline they make: watches the members, makes a plan when it can, has it
// loaded, and hands the finished pipeline to the driver. Knows neither gRPC nor threads: its owner
// calls it from one thread, and calls Tick now and then.
//
//              enough members, they can hold the model          every stage is ready
//    waiting ------------------------------------------> loading --------------------> serving
//       ^        a worker is lost, or a stage fails         | ^  a worker or a link is   | |
//       +---------------------------------------------------+-+- lost -------------------+ |
//                                                             |   all that can be done for |
//                                                             '-- another plan is done ----'
//
// While one serves, the plan that is to take its place is prepared: its workers fetch what they
// lack. Then the pipeline runs dry, and the new plan is loaded of what is there.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/clock.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/activation_channel.h"
#include "cluster/membership.h"
#include "cluster/pipeline_plan.h"
#include "cluster/plan_aim.h"
#include "coordinator/hop_rules.h"
#include "coordinator/kv_replica_rules.h"
#include "coordinator/pipeline_driver.h"
#include "coordinator/plan_maker.h"
#include "coordinator/plan_progress.h"
#include "coordinator/plan_roster.h"
#include "coordinator/split_backoff.h"
#include "coordinator/stage_orders.h"
#include "model/layer_cost.h"
#include "model/model_config.h"

namespace caravan {

class ClusterController {
 public:
  struct Options {
    v1::ModelReference model;
    std::string model_identity;  // as ModelIdentity, for archives of KV blocks
    ModelConfig config;
    ModelCost cost;                 // with `mtp`: the pipelines speculate
    int min_workers = 1;            // the first plan waits for this many
    int64_t context_tokens = 0;     // longest sequence
    int64_t kv_tokens = 0;          // the KV caches are to hold, if memory allows
    int64_t max_step_tokens = 512;  // rows that one step may carry
    PlanAim aim = PlanAim::kBulk;   // of plans by times (cluster/planner.h)
    absl::Duration heartbeat_interval = absl::Seconds(2.5);
    absl::Duration heartbeat_timeout = absl::Seconds(5);
    absl::Duration retry_delay = absl::Seconds(5);    // after a plan that failed to load
    absl::Duration rejoin_delay = absl::Seconds(30);  // as RejoinBackoff
    uint64_t incarnation = 0;                         // the coordinator's
    std::string identity;  // as its certificate says; empty: the cluster has none
    const Clock* clock = &SteadyClock();
  };

  /// How to reach one worker. Copied; called by the controller's thread; must not block: what
  /// cannot take an order ends the Attend call instead.
  struct WorkerLink {
    std::function<void(v1::WorkerOrder)> order;
    std::function<void()> hang_up;  // ends its Attend call
  };

  /// Where a pipeline that is about to serve begins and ends.
  struct PipelineEnds {
    uint64_t plan_version = 0;
    Member first;      // takes the coordinator's steps
    std::string name;  // what messages call it
    Member last;       // sends them home
  };

  /// Opens the channel to stage 0. Its breaking must find its way to PipelineBroken.
  using OpenFirstHop =
      std::function<absl::StatusOr<std::unique_ptr<ActivationChannel>>(const PipelineEnds& ends)>;

  ClusterController(Options options, PipelineDriver* driver, OpenFirstHop open_first_hop);

  /// A worker wants to belong, whose certificate names `identity`. On success it has been sent
  /// Welcome.
  /// Errors: as Membership::Join; FailedPrecondition - it is of another version of the protocol, or
  ///         has another model; Unavailable - after Dismiss.
  absl::StatusOr<WorkerId> Join(uint64_t incarnation, const v1::Registration& registration,
                                WorkerLink link, const std::string& identity = "");

  /// Anything that a worker says after Join.
  /// Errors: Aborted - it is taken for dead, or its incarnation is stale.
  absl::Status Report(WorkerId worker, const v1::WorkerReport& report);

  /// Its Attend call ended. Nothing happens if it had left already.
  void Gone(WorkerId worker, uint64_t incarnation);

  /// The driver or the first hop says that plan `plan_version` cannot go on.
  void PipelineBroken(uint64_t plan_version, const absl::Status& why);

  /// The driver says that all steps of plan `plan_version` have come home, after it was told to run
  /// dry for plan `next_version`.
  void PipelineQuiet(uint64_t plan_version, uint64_t next_version);

  /// Plans do without this worker from now on, until it joins anew or `undo`: Cluster.Drain.
  /// Errors: NotFound, InvalidArgument, FailedPrecondition - as there.
  absl::StatusOr<WorkerId> Drain(const std::string& worker, bool undo);

  /// Finds silent workers, makes plans that are due.
  void Tick();

  /// Tells every worker that the coordinator leaves. Nobody joins and nothing is planned any more.
  void Dismiss(const std::string& reason);

  v1::GetStatusResponse Status() const;

 private:
  /// `code`: Aborted where it left of its own will, for which no job gives up.
  void Lose(const Member& member, const std::string& why,
            absl::StatusCode code = absl::StatusCode::kUnavailable);
  /// Those that were silent for too long, and those whose address another has taken.
  void LoseExpired();
  /// What a worker says of the plan that is loaded or serves, or of the next one.
  void ReportOfPlan(WorkerId worker, int stage, const v1::WorkerReport& report);
  void ReportOfNextPlan(WorkerId worker, int stage, const v1::WorkerReport& report);
  /// What a worker says of its archive of KV blocks.
  void HearOfArchive(WorkerId worker, const v1::KvArchiveNews& news);
  /// Has stages of the plan that serves send their KV blocks to others, where that has become
  /// better.
  void RenewKvReplicas();
  /// The present plan ends, since `worker` cannot have its stage, and the next one is made:
  /// PlanRoster::LeaveOut.
  void EndPlanWithout(WorkerId worker, const absl::Status& why, absl::StatusCode code);
  /// EndPlanWithout a suspect whom the others can do without now. False: there is none.
  bool LeaveOutSuspect();
  /// Whether the others, those held back too, could hold the model. Errors: as MakePlan - they
  /// cannot.
  absl::Status CheckCanDoWithout(WorkerId worker) const;
  /// The hop of the present plan at that end of stage `stage` could not be joined by NCCL: the plan
  /// ends, and the next one has it go over TCP.
  void GoWithoutNccl(int stage, v1::HopEnd end, const absl::Status& why);
  /// Makes the plan that the present members call for, unless they have it.
  void MaybePlan();
  /// Whether there can be a plan of so many at all. Errors: Unavailable - more have to join.
  absl::Status CheckEnough(const std::vector<Member>& members) const;
  /// A plan of the usable members. Of those held back it lets in whom it takes.
  /// Errors: as CheckEnough and MakePlan, of all of them.
  absl::StatusOr<PipelinePlan> MakePlanLettingIn();
  /// Errors: as PlanMaker::Make.
  absl::StatusOr<PipelinePlan> MakePlan(const std::vector<Member>& members) const;
  void StartLoading(PipelinePlan plan);
  void StartServing();
  void StartPreparing(PipelinePlan plan);
  /// Nothing comes of the next plan, if there is one.
  void CancelNext();
  /// MaybePlan at the next Tick, unless plan_not_before_ is set anew.
  void PlanSoon();
  /// Ends the present plan, and the next one: its jobs are interrupted of `why`, its workers drop
  /// their stages, but for those in `goes_on`.
  void EndPlan(const absl::Status& why, absl::Span<const WorkerId> goes_on = {});
  void SendOrder(WorkerId worker, v1::WorkerOrder order);
  /// The stage of the present plan that `worker` holds, or of the next; -1: none.
  int StageOf(WorkerId worker) const;
  int NextStageOf(WorkerId worker) const;
  std::string PipelineState() const;

  const Options options_;
  PipelineDriver* const driver_;
  const OpenFirstHop open_first_hop_;
  Membership membership_;
  std::map<WorkerId, WorkerLink> links_;
  std::map<WorkerId, v1::WorkerLoad> loads_;  // of the last heartbeat that came
  HopRules hops_;
  KvReplicaRules replicas_;
  const StageOrders orders_;
  PlanRoster roster_;
  PlanMaker plans_;
  SplitBackoff splits_;
  std::optional<ActivePlan> active_;
  std::optional<NextPlan> next_;                // only while the active one serves
  std::optional<absl::Duration> served_until_;  // when the last plan that served ended
  std::set<WorkerId> served_last_;              // who had a stage of it
  bool leaving_ = false;
  bool planned_once_ = false;
  bool plan_is_due_ = false;  // members came or went, or a plan ended, since MaybePlan settled it
  absl::Duration plan_not_before_ = -absl::InfiniteDuration();  // on the clock
  std::string waiting_reason_;                                  // why there is no plan, for people
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_CLUSTER_CONTROLLER_H_
