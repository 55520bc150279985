#ifndef CARAVAN_COORDINATOR_KV_ARCHIVES_H_
#define CARAVAN_COORDINATOR_KV_ARCHIVES_H_

// What a plan says about the workers' archives of KV blocks: who asks whom for what it lacks, and
// who sends whom what it keeps.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/membership.h"
#include "coordinator/kv_replica_rules.h"
#include "model/stage_spec.h"

namespace caravan {

/// A stage and who holds it.
struct RingMember {
  Member member;
  StageSpec stage;
  int64_t kv_block_bytes = 0;  // of the stage's layers of a block, in the member's format
};

/// The members, by what a plan has them do.
struct KvArchiveMembers {
  std::vector<RingMember> ring;
  std::vector<Member> spares;  // hold no stage, and may be sent something
  std::vector<Member> others;  // hold none, and may not
};

/// For each stage of the ring what its worker is told; nothing where it has no archive. What spares
/// and others have is asked for first, as it may lie nowhere else: a drained worker's, say. Then
/// the nearest on the ring are asked, at most 16 all in all.
///
/// A replica goes to the fittest by `rules`: of several to the next worker round the ring, then to
/// the first spare. `present`: what the stages of this ring were told last, or nothing; who keeps a
/// replica then goes on unless another is fitter, since that one lacks what was sent.
std::vector<v1::KvArchives> PlanKvArchives(const KvArchiveMembers& members,
                                           const KvReplicaRules& rules,
                                           absl::Span<const v1::KvArchives> present = {});

/// Whether a stage that was told the one has nothing to be told by SetKvReplica.
bool SameReplica(const v1::KvArchives& a, const v1::KvArchives& b);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_KV_ARCHIVES_H_
