#include "worker/experts/expert_slots.h"

#include <numeric>
#include <optional>
#include <utility>

namespace caravan {

ExpertSlots::ExpertSlots(const ExpertFiles& files, int num_slots, int num_passed,
                         std::unique_ptr<CachePolicy> policy, ExpertMeter& meter)
    : files_(files),
      meter_(meter),
      cache_({.first_layer = files.layers().front(),
              .num_layers = files.layers().back() - files.layers().front() + 1,
              .experts_per_layer = files.experts_per_layer(),
              .num_slots = num_slots - num_passed},
             std::move(policy)),
      slots_(static_cast<size_t>(num_slots)),
      frame_of_(slots_.size()),
      free_cached_(num_slots - num_passed) {
  std::iota(frame_of_.begin(), frame_of_.end(), 0);
  slot_of_ = frame_of_;
}

int ExpertSlots::Find(ExpertKey key) const {
  if (const std::optional<int> slot = cache_.Find(key); slot.has_value()) return *slot;
  for (int slot = num_cached(); slot < size(); ++slot) {
    if (At(slot).state != Slot::State::kFree && At(slot).key == key) return slot;
  }
  return -1;
}

int ExpertSlots::FindFreePassed() const {
  for (int slot = num_cached(); slot < size(); ++slot) {
    if (At(slot).state == Slot::State::kFree) return slot;
  }
  return -1;
}

int ExpertSlots::Take(ExpertKey key, double score) {
  const std::optional<int> taken = cache_.Take(key, score);
  if (!taken.has_value()) return -1;
  if (At(*taken).state == Slot::State::kFree) {
    --free_cached_;
    return *taken;
  }
  if (At(*taken).guess) meter_.AddWasted(BytesOf(*taken));
  meter_.Add(&ExpertCounters::evictions, 1);
  return *taken;
}

void ExpertSlots::Adopt(ExpertKey key, int frame) {
  const int slot = Take(key, kAnyScore);
  SwapFrames(slot, SlotOf(frame));
  Of(slot) = {.state = Slot::State::kReady, .key = key};
  cache_.Release(slot);
}

void ExpertSlots::Begin(int slot, ExpertKey key, bool is_guess) {
  Of(slot) = {.state = Slot::State::kReading, .key = key, .wanted = !is_guess, .guess = is_guess};
  if (is_guess) {
    meter_.Add(&ExpertCounters::guesses, 1);
  } else if (!IsPassed(slot)) {
    cache_.Hold(slot);  // beside the read's own
  }
}

void ExpertSlots::Again(int slot) {
  // The read's own hold, which that of a read that just failed still has.
  if (IsReady(slot) && !IsPassed(slot)) cache_.Hold(slot);
  Of(slot).state = Slot::State::kReading;
  Of(slot).found = false;
}

void ExpertSlots::End(int slot) {
  Of(slot).state = Slot::State::kReady;
  if (!IsPassed(slot)) {
    cache_.Release(slot);
  } else if (!At(slot).wanted && !At(slot).guess) {
    Forget(slot);
  }
}

void ExpertSlots::Want(int slot) {
  Of(slot).wanted = true;
  if (!IsPassed(slot)) cache_.Hold(slot);
  if (IsReading(slot)) Of(slot).found = true;
  if (std::exchange(Of(slot).guess, false)) meter_.Add(&ExpertCounters::guesses_used, 1);
}

void ExpertSlots::Unwant(int slot) {
  Of(slot).wanted = false;
  if (!IsPassed(slot)) {
    cache_.Release(slot);
  } else if (IsReady(slot)) {
    Forget(slot);
  }
}

void ExpertSlots::Lose(int slot) {
  // What is read holds its slot, and what the visit wants does: one hold is Forget's.
  if (IsReading(slot) && At(slot).wanted) Unwant(slot);
  Of(slot).wanted = false;
  Forget(slot);
}

void ExpertSlots::GiveUpGuess(int slot) {
  Of(slot).guess = false;
  meter_.AddWasted(BytesOf(slot));
}

int ExpertSlots::EnterCache(int slot, double score) {
  const int cached = Take(At(slot).key, score);
  if (cached < 0) return slot;
  // Its bytes stay where they are.
  SwapFrames(cached, slot);
  Of(cached) = std::exchange(Of(slot), {});
  if (IsReading(cached)) cache_.Hold(cached);  // beside the read's own
  return cached;
}

void ExpertSlots::SwapFrames(int a, int b) {
  std::swap(frame_of_[static_cast<size_t>(a)], frame_of_[static_cast<size_t>(b)]);
  for (const int each : {a, b}) slot_of_[static_cast<size_t>(FrameOf(each))] = each;
}

void ExpertSlots::Forget(int slot) {
  if (At(slot).guess) meter_.AddWasted(IsReady(slot) ? BytesOf(slot) : 0);
  Of(slot) = {};
  if (IsPassed(slot)) return;
  cache_.Drop(slot);
  ++free_cached_;
}

}  // namespace caravan
