#ifndef CARAVAN_COORDINATOR_KV_ARCHIVES_H_
#define CARAVAN_COORDINATOR_KV_ARCHIVES_H_

// What a plan says about the workers' archives of KV blocks: who asks whom for what it lacks, and
// who sends whom what it keeps.

#include <vector>

#include "caravan/v1/cluster.pb.h"
#include "cluster/membership.h"
#include "model/stage_spec.h"

namespace caravan {

/// A stage and who holds it.
struct RingMember {
  Member member;
  StageSpec stage;
};

/// For each stage of `ring` what its worker is told; nothing where it has no archive. `spares` and
/// `others` hold none, and what they have is asked for first, as it may lie nowhere else: a drained
/// worker's, say. Then the nearest on the ring are asked, at most 16 all in all. Only spares may be
/// sent something.
///
/// A replica goes to the next worker round the ring, then to the first spare, that has an archive
/// in the same format; to one on another machine if there is one, as it is the machine that may be
/// lost.
std::vector<v1::KvArchives> PlanKvArchives(const std::vector<RingMember>& ring,
                                           const std::vector<Member>& spares,
                                           const std::vector<Member>& others);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_KV_ARCHIVES_H_
