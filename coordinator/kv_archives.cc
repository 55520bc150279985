#include "coordinator/kv_archives.h"

#include <cstddef>

namespace caravan {
namespace {

// Each is asked for a list whenever a stage is loaded.
constexpr int kMostPeers = 16;

bool HasArchive(const Member& member) { return member.registration.kv_archive_bytes() > 0; }

/// Whether one can use what the other keeps.
bool Alike(const Member& a, const Member& b) {
  return HasArchive(a) && HasArchive(b) && KvDTypeOf(a.registration) == KvDTypeOf(b.registration);
}

bool OnOneMachine(const Member& a, const Member& b) {
  return !a.registration.machine().empty() && a.registration.machine() == b.registration.machine();
}

}  // namespace

std::vector<v1::KvArchives> PlanKvArchives(const std::vector<RingMember>& ring,
                                           const std::vector<Member>& spares,
                                           const std::vector<Member>& others) {
  std::vector<v1::KvArchives> told(ring.size());
  for (size_t i = 0; i < ring.size(); ++i) {
    const Member& own = ring[i].member;
    // Round the ring, then the spares: where a replica may go.
    std::vector<const Member*> after;
    std::vector<size_t> stage_of;  // of those; ring.size(): none
    for (size_t k = 1; k < ring.size(); ++k) {
      const size_t stage = (i + k) % ring.size();
      if (!Alike(own, ring[stage].member)) continue;
      after.push_back(&ring[stage].member);
      stage_of.push_back(stage);
    }
    for (const Member& spare : spares) {
      if (!Alike(own, spare)) continue;
      after.push_back(&spare);
      stage_of.push_back(ring.size());
    }
    if (own.registration.kv_replicates() && !after.empty()) {
      size_t chosen = 0;
      for (size_t k = 0; k < after.size(); ++k) {
        if (OnOneMachine(own, *after[k])) continue;
        chosen = k;
        break;
      }
      *told[i].mutable_replica() = ToPeer(*after[chosen]);
      if (stage_of[chosen] < ring.size()) {
        v1::KvLayerRange& incoming = *told[stage_of[chosen]].add_incoming();
        incoming.set_first_layer(static_cast<uint32_t>(ring[i].stage.first_layer));
        incoming.set_num_layers(static_cast<uint32_t>(ring[i].stage.num_kv_layers()));
      }
    }
    const auto ask = [&](const Member& peer) {
      if (told[i].peers_size() == kMostPeers || !Alike(own, peer)) return;
      *told[i].add_peers() = ToPeer(peer);
    };
    for (const Member& other : others) ask(other);
    for (const Member& spare : spares) ask(spare);
    // Layers move between neighbours mostly: one after, one before, two after, and so on.
    for (size_t k = 1; k < ring.size(); ++k) {
      const size_t ahead = k % 2 == 1 ? (k + 1) / 2 : ring.size() - k / 2;
      ask(ring[(i + ahead) % ring.size()].member);
    }
  }
  return told;
}

}  // namespace caravan
