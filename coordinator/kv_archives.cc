#include "coordinator/kv_archives.h"

#include <algorithm>
#include <cstddef>
#include <map>

namespace caravan {
namespace {

// Each is asked for a list whenever a stage is loaded.
constexpr int kMostPeers = 16;

/// Who keeps whose replica.
class ReplicaChoice {
 public:
  ReplicaChoice(const KvArchiveMembers& members, const KvReplicaRules& rules,
                absl::Span<const v1::KvArchives> present)
      : members_(members), rules_(rules), keepers_(members.ring.size(), nullptr) {
    for (const RingMember& each : members.ring) held_bytes_[each.member.id] = each.kv_block_bytes;
    // First what stays as it is: it has its room already.
    for (size_t i = 0; i < present.size(); ++i) {
      if (!present[i].has_replica()) continue;
      for (const Member* const candidate : Candidates(i)) {
        if (candidate->incarnation == present[i].replica().incarnation()) Give(i, candidate);
      }
    }
    for (size_t i = 0; i < keepers_.size(); ++i) Choose(i);
  }

  /// Null: nobody.
  const Member* KeeperOf(size_t stage) const { return keepers_[stage]; }
  /// How many blocks the keeper has room for, of the stage and of all else that it holds.
  int64_t BlocksOf(size_t stage) const {
    const Member& keeper = *keepers_[stage];
    return rules_.RoomBytes(keeper) / std::max<int64_t>(1, held_bytes_.at(keeper.id));
  }

 private:
  /// Round the ring, then the spares.
  std::vector<const Member*> Candidates(size_t stage) const {
    std::vector<const Member*> candidates;
    if (!members_.ring[stage].member.registration.kv_replicates()) return candidates;
    for (size_t k = 1; k < members_.ring.size(); ++k) {
      candidates.push_back(&members_.ring[(stage + k) % members_.ring.size()].member);
    }
    for (const Member& spare : members_.spares) candidates.push_back(&spare);
    return candidates;
  }

  void Choose(size_t stage) {
    const RingMember& own = members_.ring[stage];
    const Member* best = keepers_[stage];
    ReplicaFitness fitness = best == nullptr
                                 ? ReplicaFitness::kNone
                                 : rules_.Fitness(own.member, *best, held_bytes_[best->id]);
    for (const Member* const candidate : Candidates(stage)) {
      if (candidate == keepers_[stage]) continue;
      const ReplicaFitness its =
          rules_.Fitness(own.member, *candidate, held_bytes_[candidate->id] + own.kv_block_bytes);
      if (its <= fitness) continue;
      fitness = its;
      best = candidate;
    }
    Give(stage, fitness == ReplicaFitness::kNone ? nullptr : best);
  }

  void Give(size_t stage, const Member* keeper) {
    const int64_t bytes = members_.ring[stage].kv_block_bytes;
    if (keepers_[stage] != nullptr) held_bytes_[keepers_[stage]->id] -= bytes;
    keepers_[stage] = keeper;
    if (keeper != nullptr) held_bytes_[keeper->id] += bytes;
  }

  const KvArchiveMembers& members_;
  const KvReplicaRules& rules_;
  std::vector<const Member*> keepers_;      // by stage
  std::map<WorkerId, int64_t> held_bytes_;  // of each block, by whoever holds some of it
};

}  // namespace

std::vector<v1::KvArchives> PlanKvArchives(const KvArchiveMembers& members,
                                           const KvReplicaRules& rules,
                                           absl::Span<const v1::KvArchives> present) {
  const std::vector<RingMember>& ring = members.ring;
  const ReplicaChoice choice(members, rules, present);
  std::vector<v1::KvArchives> told(ring.size());
  for (size_t i = 0; i < ring.size(); ++i) {
    const Member& own = ring[i].member;
    if (const Member* const keeper = choice.KeeperOf(i); keeper != nullptr) {
      *told[i].mutable_replica() = ToPeer(*keeper);
      told[i].set_replica_blocks(static_cast<uint64_t>(choice.BlocksOf(i)));
      for (size_t k = 0; k < ring.size(); ++k) {
        if (ring[k].member.id != keeper->id) continue;
        v1::KvLayerRange& incoming = *told[k].add_incoming();
        incoming.set_first_layer(static_cast<uint32_t>(ring[i].stage.first_layer));
        incoming.set_num_layers(static_cast<uint32_t>(ring[i].stage.num_kv_layers()));
      }
    }
    const auto ask = [&](const Member& peer) {
      if (told[i].peers_size() == kMostPeers || !HaveOneKvFormat(own, peer)) return;
      *told[i].add_peers() = ToPeer(peer);
    };
    for (const Member& other : members.others) ask(other);
    for (const Member& spare : members.spares) ask(spare);
    // Layers move between neighbours mostly: one after, one before, two after, and so on.
    for (size_t k = 1; k < ring.size(); ++k) {
      const size_t ahead = k % 2 == 1 ? (k + 1) / 2 : ring.size() - k / 2;
      ask(ring[(i + ahead) % ring.size()].member);
    }
  }
  return told;
}

bool SameReplica(const v1::KvArchives& a, const v1::KvArchives& b) {
  return a.replica().incarnation() == b.replica().incarnation() &&
         std::equal(a.incoming().begin(), a.incoming().end(), b.incoming().begin(),
                    b.incoming().end(), [](const v1::KvLayerRange& x, const v1::KvLayerRange& y) {
                      return x.first_layer() == y.first_layer() && x.num_layers() == y.num_layers();
                    });
}

}  // namespace caravan
