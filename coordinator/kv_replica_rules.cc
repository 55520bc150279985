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
  const auto refusal = refusals_.find({from.id, to.incarnation});
  const bool refuses = refusal != refusals_.end() && clock_->Now() < refusal->second;
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
  // One that takes again what it is sent is doubted for a while all the same, lest replicas go to
  // and fro.
  if (news.refused_by() != 0) {
    refusals_[{member.id, news.refused_by()}] = clock_->Now() + kRefusalLasts;
  }
}

void KvReplicaRules::Forget(const Member& member) {
  changed_ = true;
  room_bytes_.erase(member.id);
  std::erase_if(refusals_, [&](const auto& refusal) {
    return refusal.first.first == member.id || refusal.first.second == member.incarnation;
  });
}

bool KvReplicaRules::TakeChanged() {
  const auto ended = std::erase_if(
      refusals_, [this](const auto& refusal) { return clock_->Now() >= refusal.second; });
  return std::exchange(changed_, false) || ended > 0;
}

}  // namespace caravan
