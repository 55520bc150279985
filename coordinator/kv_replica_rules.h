#ifndef CARAVAN_COORDINATOR_KV_REPLICA_RULES_H_
#define CARAVAN_COORDINATOR_KV_REPLICA_RULES_H_

// How well a worker is suited to keep the replica of another's KV blocks: a function of what both
// say of themselves when they join, and of their archives later (KvArchiveNews).

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/time/time.h"
#include "base/clock.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/membership.h"

namespace caravan {

/// The later the better.
enum class ReplicaFitness {
  kNone,         // no archive in the format, or no room for more than a few blocks
  kFull,         // it did not take what it was sent, or its disk is full for the most part
  kSameMachine,  // whose loss takes both
  kOtherMachine,
};

/// Whether one can use what the other keeps.
bool HaveOneKvFormat(const Member& a, const Member& b);

/// Not thread-safe.
class KvReplicaRules {
 public:
  /// Room for fewer blocks is none: what is sent would be gone before it is wanted.
  static constexpr int64_t kLeastBlocks = 8;
  /// So long a worker that refused what another sent is taken for one that would refuse it again,
  /// from when the other no longer says that it does.
  static constexpr absl::Duration kRefusalLasts = absl::Minutes(5);
  /// As many of those that refused a worker's blocks are remembered, the latest.
  static constexpr size_t kMostRefusals = 8;

  /// `clock` outlives the object.
  explicit KvReplicaRules(const Clock* clock) : clock_(clock) {}

  /// Of `to` as the keeper of what `from` keeps. `block_bytes`: what `to` has to hold of each block
  /// then, that of its own stage and of others that send it theirs included.
  ReplicaFitness Fitness(const Member& from, const Member& to, int64_t block_bytes) const;

  /// What the member's archive has room for, as it said last.
  int64_t RoomBytes(const Member& member) const;

  void Hear(const Member& member, const v1::KvArchiveNews& news);
  /// It is lost.
  void Forget(const Member& member);

  /// Somebody came or went, or is used in another way: what was chosen may be chosen anew.
  void NoteChange() { changed_ = true; }
  /// Whether something has changed since the last call, by what was said or by time.
  bool TakeChanged();

 private:
  struct Refusal {
    uint64_t by;           // incarnation
    absl::Duration until;  // on the clock; infinite while the last news says so
  };

  const Clock* const clock_;
  std::map<WorkerId, int64_t> room_bytes_;             // of those that said so after they joined
  std::map<WorkerId, std::vector<Refusal>> refusals_;  // by who was refused, the latest last
  bool changed_ = false;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_KV_REPLICA_RULES_H_
