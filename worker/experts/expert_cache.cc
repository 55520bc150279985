#include "worker/experts/expert_cache.h"

#include <utility>

#include "base/check.h"

namespace caravan {

ExpertCache::ExpertCache(const Shape& shape, std::unique_ptr<CachePolicy> policy)
    : shape_(shape),
      policy_(std::move(policy)),
      slots_(static_cast<size_t>(shape.num_slots)),
      slot_of_(static_cast<size_t>(shape.num_layers) * static_cast<size_t>(shape.experts_per_layer),
               -1),
      scores_(slot_of_.size(), kNoScore) {}

std::optional<int> ExpertCache::Find(ExpertKey key) const {
  const int slot = slot_of_[IndexOf(key)];
  if (slot < 0) return std::nullopt;
  return slot;
}

void ExpertCache::BeginVisit(int64_t step, int num_experts) {
  if (step != step_) {
    outgrown_ = used_in_step_ > shape_.num_slots;
    used_in_step_ = 0;
    step_ = step;
  }
  used_in_step_ += num_experts;
  keeps_ = outgrown_ || 2 * num_experts > shape_.experts_per_layer;
}

double ExpertCache::Use(ExpertKey key, const ExpertUse& use) {
  double& score = scores_[IndexOf(key)];
  const double before = std::exchange(score, policy_->AfterUse(score, use));
  return keeps_ ? before : kAnyScore;
}

std::optional<int> ExpertCache::Take(ExpertKey key, double score) {
  const size_t index = IndexOf(key);
  CARAVAN_CHECK(slot_of_[index] < 0);
  const std::optional<int> taken = NextToGive();
  if (!taken.has_value()) return std::nullopt;
  Slot& slot = slots_[static_cast<size_t>(*taken)];
  if (slot.expert >= 0) {
    const auto giving = static_cast<size_t>(slot.expert);
    if (scores_[giving] >= score) return std::nullopt;
    slot_of_[giving] = -1;
  }
  slot_of_[index] = *taken;
  slot = {static_cast<int>(index), 1, next_given_++};
  return taken;
}

void ExpertCache::Drop(int slot) {
  Slot& dropped = slots_[static_cast<size_t>(slot)];
  CARAVAN_CHECK(dropped.expert >= 0 && dropped.holds == 1);
  slot_of_[static_cast<size_t>(dropped.expert)] = -1;
  dropped = {};
}

void ExpertCache::Hold(int slot) {
  Slot& held = slots_[static_cast<size_t>(slot)];
  CARAVAN_CHECK(held.expert >= 0);
  ++held.holds;
}

void ExpertCache::Release(int slot) {
  Slot& held = slots_[static_cast<size_t>(slot)];
  CARAVAN_CHECK(held.holds > 0);
  --held.holds;
}

double ExpertCache::score(ExpertKey key) const { return scores_[IndexOf(key)]; }

void ExpertCache::SetScore(ExpertKey key, double score) { scores_[IndexOf(key)] = score; }

size_t ExpertCache::IndexOf(ExpertKey key) const {
  const int layer = key.layer - shape_.first_layer;
  CARAVAN_CHECK(layer >= 0 && layer < shape_.num_layers);
  CARAVAN_CHECK(key.expert >= 0 && key.expert < shape_.experts_per_layer);
  return static_cast<size_t>(layer) * static_cast<size_t>(shape_.experts_per_layer) +
         static_cast<size_t>(key.expert);
}

// A look at every slot: some microseconds for the thousands that a box has room for, beside the
// milliseconds that the read takes for which a slot is wanted.
std::optional<int> ExpertCache::NextToGive() const {
  std::optional<int> best;
  double best_score = 0;
  int64_t best_given = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.expert < 0) return static_cast<int>(i);
    if (slot.holds > 0) continue;
    const double score = scores_[static_cast<size_t>(slot.expert)];
    if (best.has_value() &&
        (score > best_score || (score == best_score && slot.given > best_given))) {
      continue;
    }
    best = static_cast<int>(i);
    best_score = score;
    best_given = slot.given;
  }
  return best;
}

}  // namespace caravan
