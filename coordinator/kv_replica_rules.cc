#include "coordinator/kv_replica_rules.h"

#include <algorithm>
#include <utility>

namespace caravan {
namespace {

// A disk with room for less of the budget is full for the most part.
constexpr int64_t kLeastPartOfBudget = 4;

int64_t BudgetBytes(const Member& member) {
  constexpr uint64_t kMost = INT64_MAX / 2;
  return static_cast<int64_t>(std::min(member.registration.kv_archive_bytes(), kMost));
}

bool OnOneMachine(const Member& a, const Member& b) {
  return !a.registration.machine().empty() && a.registration.machine() == b.registration.machine();
}

}  // namespace

bool HaveOneKvFormat(const Member& a, const Member& b) {
  return BudgetBytes(a) > 0 && BudgetBytes(b) > 0 &&
         KvDTypeOf(a.registration) == KvDTypeOf(b.registration);
}

ReplicaFitness KvReplicaRules::Fitness(const Member& from, const Member& to,
                                       int64_t block_bytes) const {
  const int64_t room_bytes = RoomBytes(to);
  if (!HaveOneKvFormat(from, to) || room_bytes / kLeastBlocks < block_bytes) {
    return ReplicaFitness::kNone;
  }
  const auto refusals = refusals_.find(from.id);
  const bool refuses =
      refusals != refusals_.end() &&
      std::any_of(refusals->second.begin(), refusals->second.end(), [&](const Refusal& refusal) {
        return refusal.by == to.incarnation && clock_->Now() < refusal.until;
      });
  if (refuses || room_bytes < BudgetBytes(to) / kLeastPartOfBudget) return ReplicaFitness::kFull;
  return OnOneMachine(from, to) ? ReplicaFitness::kSameMachine : ReplicaFitness::kOtherMachine;
}

int64_t KvReplicaRules::RoomBytes(const Member& member) const {
  const auto said = room_bytes_.find(member.id);
  return said == room_bytes_.end() ? BudgetBytes(member)
                                   : std::min(said->second, BudgetBytes(member));
}

void KvReplicaRules::Hear(const Member& member, const v1::KvArchiveNews& news) {
  changed_ = true;
  room_bytes_[member.id] =
      static_cast<int64_t>(std::min<uint64_t>(news.room_bytes(), uint64_t{INT64_MAX}));
  // News tell only what has changed: a refusal lasts until they say otherwise. One that takes again
  // what it is sent, or is sent nothing any more, is doubted for a while all the same, lest
  // replicas go to and fro.
  std::vector<Refusal>& refusals = refusals_[member.id];
  std::erase_if(refusals, [&](const Refusal& refusal) { return refusal.by == news.refused_by(); });
  for (Refusal& refusal : refusals) {
    refusal.until = std::min(refusal.until, clock_->Now() + kRefusalLasts);
  }
  if (news.refused_by() == 0) return;
  if (refusals.size() == kMostRefusals) refusals.erase(refusals.begin());
  refusals.push_back({news.refused_by(), absl::InfiniteDuration()});
}

void KvReplicaRules::Forget(const Member& member) {
  changed_ = true;
  room_bytes_.erase(member.id);
  refusals_.erase(member.id);
  for (auto& [other, refusals] : refusals_) {
    std::erase_if(refusals,
                  [&](const Refusal& refusal) { return refusal.by == member.incarnation; });
  }
}

bool KvReplicaRules::TakeChanged() {
  for (auto& [member, refusals] : refusals_) {
    const auto ended = std::erase_if(
        refusals, [this](const Refusal& refusal) { return clock_->Now() >= refusal.until; });
    changed_ = changed_ || ended > 0;
  }
  return std::exchange(changed_, false);
}

}  // namespace caravan
