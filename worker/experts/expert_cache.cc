#include "worker/experts/expert_cache.h"

#include <algorithm>
#include <cmath>
#include <string>
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

UseHistory ExpertCache::History(int64_t step) const {
  const auto of_one_use = [this](int64_t at) {
    return policy_->AfterUse(kNoScore, {.step = at, .rows = 1, .weight = 1});
  };
  const double later = of_one_use(step + 1) - of_one_use(0);
  UseHistory history;
  history.policy = std::string(policy_->name());
  for (size_t i = 0; i < scores_.size(); ++i) {
    if (scores_[i] != kNoScore) history.scores.push_back({KeyOf(i), scores_[i] - later});
  }
  history.used_a_layer = static_cast<double>(used_in_step_) / shape_.num_layers;
  return history;
}

void ExpertCache::Continue(const UseHistory& history) {
  CARAVAN_CHECK(step_ < 0);
  if (history.policy != policy_->name()) return;
  for (const auto& [key, score] : history.scores) {
    if (Knows(key)) SetScore(key, score);
  }
  used_in_step_ = std::llround(history.used_a_layer * shape_.num_layers);
}

std::vector<ExpertKey> ExpertCache::InOrder() const {
  std::vector<const Slot*> taken;
  for (const Slot& slot : slots_) {
    if (slot.expert >= 0) taken.push_back(&slot);
  }
  const auto worth = [this](const Slot& slot) {
    return std::pair(scores_[static_cast<size_t>(slot.expert)], slot.given);
  };
  std::sort(taken.begin(), taken.end(),
            [&](const Slot* a, const Slot* b) { return worth(*a) < worth(*b); });
  std::vector<ExpertKey> keys;
  keys.reserve(taken.size());
  for (const Slot* slot : taken) keys.push_back(KeyOf(static_cast<size_t>(slot->expert)));
  return keys;
}

size_t ExpertCache::IndexOf(ExpertKey key) const {
  CARAVAN_CHECK(Knows(key));
  return static_cast<size_t>(key.layer - shape_.first_layer) *
             static_cast<size_t>(shape_.experts_per_layer) +
         static_cast<size_t>(key.expert);
}

ExpertKey ExpertCache::KeyOf(size_t index) const {
  const auto of_layer = static_cast<size_t>(shape_.experts_per_layer);
  return {shape_.first_layer + static_cast<int>(index / of_layer),
          static_cast<int>(index % of_layer)};
}

bool ExpertCache::Knows(ExpertKey key) const {
  return key.layer >= shape_.first_layer && key.layer < shape_.first_layer + shape_.num_layers &&
         key.expert >= 0 && key.expert < shape_.experts_per_layer;
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
