#ifndef CARAVAN_COORDINATOR_PLAN_ROSTER_H_
#define CARAVAN_COORDINATOR_PLAN_ROSTER_H_

// Which members plans may use, and why the others are kept out. What a plan makes of those is not
// its matter.
//
//   kept out                       from                               until
//   held back                      joining, lost too often before     its delay is over, or LetIn
//                                  (rejoin_backoff.h)
//   drained                        Drain                              EndDrain
//   left out                       LeaveOut                           it joins anew
//   not offloading (gets only      LeaveOut of a stage that           it joins anew
//   stages that fit its memory)    offloads, for want of a pack
//
// A suspect, whose disk lost data, is in, for as long as the others cannot do without it.
//
// Whoever is lost is forgotten, but for how often; so a worker that joins anew is in again.

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/membership.h"
#include "cluster/pipeline_plan.h"
#include "coordinator/rejoin_backoff.h"

namespace caravan {

/// Not thread-safe. WorkerIds are those of members.
class PlanRoster {
 public:
  /// Tries to make a plan of these members. OK: it can be made.
  using TryPlan = absl::FunctionRef<absl::Status(const std::vector<Member>& members)>;

  /// Borrows the members.
  PlanRoster(const RejoinBackoff::Options& rejoin, const Membership* members)
      : members_(members), backoff_(rejoin) {}

  /// The member with this name or number. Errors: NotFound - there is none; InvalidArgument -
  /// several are called so.
  absl::StatusOr<WorkerId> Find(const std::string& worker) const;

  /// A new member: held back from now on, if the lives before this one were lost too often.
  void Joined(const Member& member) { backoff_.Joined(member); }
  /// `had_stage`: a plan went with it.
  void Lost(const Member& member, bool had_stage);
  /// A plan with these serves, or has ended: for how long each life was of use.
  void Serves(const PipelinePlan& plan);
  void Ends(const PipelinePlan& plan);

  /// Nothing changes, and false, where it is drained already, or is not.
  bool Drain(WorkerId worker) { return drained_.insert(worker).second; }
  bool EndDrain(WorkerId worker) { return drained_.erase(worker) > 0; }
  bool IsDrained(WorkerId worker) const { return drained_.contains(worker); }

  /// Whether a worker that could not have a stage, for an error of this code, would fail again: the
  /// fault lies in what it has or was asked for, not in somebody who was away.
  static bool IsPermanent(absl::StatusCode code);
  /// `stage`, which `worker` was to have, cannot be had there, of `why`, and trying again would not
  /// help. Where only its experts could not be left on its disk (`code` is FailedPrecondition), it
  /// gets stages that fit its memory; else none.
  void LeaveOut(WorkerId worker, const StagePlan& stage, const absl::Status& why,
                absl::StatusCode code);

  /// The worker's disk lost data: it is a suspect.
  void Suspect(WorkerId worker, const absl::Status& why) { suspects_[worker] = why; }
  const std::map<WorkerId, absl::Status>& suspects() const { return suspects_; }

  /// Those that plans may use, in order of joining.
  std::vector<Member> Usable() const;
  /// Whether a plan may leave experts on this worker's disk.
  bool MayOffload(const Member& member) const {
    return member.registration.offloads() && !no_offloading_.contains(member.id);
  }

  /// Whom plans need of those who are held back: none, if `try_plan` is content with the usable
  /// ones, else as few as it takes, those first who were lost least often; where that is many,
  /// maybe some who are of no use too. Nobody is let in by that. Of h who are held back it tries
  /// log2(h) + 10 at most, and supposes that who is content with some is with more too. With `but`
  /// (a member, or none) as if that one were kept out. Errors: what `try_plan` says of all of them
  /// together.
  absl::StatusOr<std::vector<WorkerId>> Needed(TryPlan try_plan, WorkerId but = {}) const;
  /// These are held back no more: the others cannot do without.
  void LetIn(const std::vector<WorkerId>& workers) { backoff_.LetIn(workers); }
  /// Lets those in whose delay is over. Whether there were any.
  bool EndHolds() { return backoff_.EndHolds(); }

  /// "; drained: worker 2 (box-b); left out: ..." of all who are kept out; empty: nobody is.
  /// `has_stage`: of the present plan.
  std::string Describe(absl::FunctionRef<bool(WorkerId)> has_stage) const;
  void Describe(WorkerId worker, v1::WorkerStatus& status) const;

 private:
  bool IsKeptOut(WorkerId worker) const {
    return left_out_.contains(worker) || drained_.contains(worker);
  }

  const Membership* const members_;
  RejoinBackoff backoff_;
  std::set<WorkerId> drained_;
  std::map<WorkerId, std::string> left_out_;       // and why
  std::map<WorkerId, std::string> no_offloading_;  // and why
  std::map<WorkerId, absl::Status> suspects_;      // and what their disk lost
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_PLAN_ROSTER_H_
