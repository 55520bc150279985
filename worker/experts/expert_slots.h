#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_SLOTS_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_SLOTS_H_

// Which expert each slot of the store is for, and who needs it there: bookkeeping, without bytes or
// reads. A slot has a frame of memory (ExpertReads); two slots may change frames.
//
//          Begin                End
//   free ----------> reading ----------> ready --Again--> reading
//     ^   (a passed one that nobody wants any more)|
//     +--------- Forget, or Take for another ------+
//
// The first slots are the cache's (ExpertCache); through the others experts pass: one that is ready
// there is forgotten when the visit lets go of it.
//
// Used by one thread. Allocates nothing once made.

#include <cstdint>
#include <memory>
#include <vector>

#include "worker/experts/cache_policy.h"
#include "worker/experts/expert_cache.h"
#include "worker/experts/expert_counters.h"
#include "worker/experts/expert_files.h"
#include "worker/experts/expert_key.h"

namespace caravan {

class ExpertSlots {
 public:
  struct Slot {
    enum class State { kFree, kReading, kReady };
    State state = State::kFree;
    ExpertKey key;
    bool wanted = false;  // by the visit
    bool guess = false;   // read for no visit, and not wanted since
    bool found = false;   // being read already when the visit came
  };

  /// Of num_slots, num_passed are those through which experts pass. `files` and `meter` outlive
  /// this.
  ExpertSlots(const ExpertFiles& files, int num_slots, int num_passed,
              std::unique_ptr<CachePolicy> policy, ExpertMeter& meter);

  int size() const { return static_cast<int>(slots_.size()); }
  int num_cached() const { return cache_.shape().num_slots; }
  int num_passed() const { return size() - num_cached(); }
  bool IsPassed(int slot) const { return slot >= num_cached(); }
  const Slot& At(int slot) const { return slots_[static_cast<size_t>(slot)]; }
  bool IsReady(int slot) const { return At(slot).state == Slot::State::kReady; }
  bool IsReading(int slot) const { return At(slot).state == Slot::State::kReading; }
  int FrameOf(int slot) const { return frame_of_[static_cast<size_t>(slot)]; }
  int SlotOf(int frame) const { return slot_of_[static_cast<size_t>(frame)]; }
  ExpertCache& cache() { return cache_; }
  const ExpertCache& cache() const { return cache_; }

  // Each of these: -1: there is none.
  /// The expert's.
  int Find(ExpertKey key) const;
  /// A free one through which experts pass.
  int FindFreePassed() const;
  /// One of the cache's for this expert, as ExpertCache::Take, which it leaves to Begin.
  int Take(ExpertKey key, double score);
  /// Whether the cache has free ones.
  bool HasFreeCached() const { return free_cached_ > 0; }

  /// It lies in this frame already: gives it a slot of the cache, of those that are free. REQUIRES:
  /// there is one; no slot has been given to be read to; it and the frame are nobody's.
  void Adopt(ExpertKey key, int frame);

  /// It is read there from now on: for the visit, which then wants it, or as a guess. REQUIRES:
  /// the slot is free, or was just taken.
  void Begin(int slot, ExpertKey key, bool is_guess);
  /// It is read once more. REQUIRES: it is wanted, and ready, or the read just failed.
  void Again(int slot);
  /// The read ended well.
  void End(int slot);

  /// The visit wants what is there, or is being read.
  void Want(int slot);
  /// The visit lets go of it.
  void Unwant(int slot);
  /// The read failed, or its bytes are wrong, or it was taken back: the slot is free. REQUIRES: it
  /// is not ready and one of the cache's, unless wanted.
  void Lose(int slot);
  /// A guess that can no longer be taken back passes through and is forgotten when read, unless a
  /// visit wants it by then.
  void GiveUpGuess(int slot);
  /// Makes what passes part of the cache, if that gives way to `score`. Returns the slot in which
  /// it is then.
  int EnterCache(int slot, double score);

 private:
  Slot& Of(int slot) { return slots_[static_cast<size_t>(slot)]; }
  void SwapFrames(int a, int b);
  /// Frees a slot. REQUIRES: one of the cache is held once.
  void Forget(int slot);
  int64_t BytesOf(int slot) const { return files_.run_bytes(At(slot).key.layer); }

  const ExpertFiles& files_;
  ExpertMeter& meter_;
  ExpertCache cache_;
  std::vector<Slot> slots_;
  std::vector<int> frame_of_;  // by slot
  std::vector<int> slot_of_;   // by frame
  int free_cached_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_SLOTS_H_
