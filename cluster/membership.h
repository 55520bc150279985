#ifndef CARAVAN_CLUSTER_MEMBERSHIP_H_
#define CARAVAN_CLUSTER_MEMBERSHIP_H_

// Who is there: the workers that joined and are still heard of. What they hold is the plan's
// matter.
//
//            Join               Leave
//   (nobody) ----> member -------------------------------.
//                  |  ^  '- silent for the timeout ----.  |
//             Heard|  |     another joins from its     |  v
//                  '--'     address ----------> lost --+-> (gone: its calls are Aborted)
//                                                 Expire
//
// A silent member is a member until Expire says that it is lost; one whose address was taken is
// not.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/dtype.h"
#include "base/mutex.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/box.h"
#include "cluster/worker_id.h"

namespace caravan {

struct Member {
  WorkerId id{};
  uint64_t incarnation = 0;
  v1::Registration registration;
  std::string identity;       // as its certificate says: "worker/box-a"; empty: it has none
  absl::Duration joined_at;   // of the clock, as is:
  absl::Duration last_heard;  // joining counts
};

/// What messages call it: "worker 2 (box-b)".
std::string DescribeWorker(const Member& member);
/// As others are told of it.
v1::Peer ToPeer(const Member& member);

struct MembershipOptions {
  absl::Duration heartbeat_timeout = absl::Seconds(10);
};

/// Errors: InvalidArgument - a field of the registration that cannot be (named).
absl::Status CheckRegistration(const v1::Registration& registration);

/// The format of the worker's KV cache. REQUIRES: CheckRegistration is OK.
DType KvDTypeOf(const v1::Registration& registration);

/// What the worker says of its box; on a network that is not said, of 1 Gbit/s. nullopt: nothing.
/// REQUIRES: CheckRegistration is OK.
std::optional<Box> BoxOf(const v1::Registration& registration);

/// Thread-safe.
class Membership {
 public:
  /// `clock` outlives the object.
  Membership(const Clock& clock, const MembershipOptions& options)
      : clock_(clock), options_(options) {}

  /// A member at the same address is an earlier life of this worker: it is lost from now on.
  /// Errors: InvalidArgument - incarnation 0, or as CheckRegistration; AlreadyExists - this
  ///         incarnation is a member; PermissionDenied - the address is that of a member with
  ///         another identity.
  absl::StatusOr<WorkerId> Join(uint64_t incarnation, const v1::Registration& registration,
                                const std::string& identity = "");

  /// Any report of a worker is a sign of life.
  /// Errors: Aborted - not a member, or another incarnation of it: join anew.
  absl::Status Heard(WorkerId id, uint64_t incarnation);

  /// Errors: as Heard.
  absl::Status Leave(WorkerId id, uint64_t incarnation);

  /// Removes and returns those that were silent for longer than heartbeat_timeout, and returns
  /// those whose address was taken since the last call; each in order of joining.
  std::vector<Member> Expire();

  std::vector<Member> Members() const;  // in order of joining
  std::optional<Member> Find(WorkerId id) const;

 private:
  using MemberMap = std::map<WorkerId, Member>;  // ids grow, so in order of joining

  absl::StatusOr<MemberMap::iterator> FindAlive(WorkerId id, uint64_t incarnation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Clock& clock_;
  const MembershipOptions options_;
  mutable Mutex mu_;
  uint32_t last_id_ ABSL_GUARDED_BY(mu_) = 0;
  MemberMap members_ ABSL_GUARDED_BY(mu_);
  MemberMap lost_ ABSL_GUARDED_BY(mu_);  // their address was taken; Expire has not said so yet
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_MEMBERSHIP_H_
