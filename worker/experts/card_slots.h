#ifndef CARAVAN_WORKER_EXPERTS_CARD_SLOTS_H_
#define CARAVAN_WORKER_EXPERTS_CARD_SLOTS_H_

// Memory of a card for a number of experts, and the way there from the host's. What lies in which
// slot, and may be overwritten, is the caller's to know.
//
// Used by the thread that uses the card's backend, which outlives the object.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/copy_queue.h"
#include "kernels/expert_batches.h"
#include "kernels/memory.h"

namespace caravan {

class CardSlots {
 public:
  /// As much as one slot takes of the card, for experts of at most so many bytes.
  static int64_t BytesFor(int64_t expert_bytes);

  /// REQUIRES: slot_bytes is such a number.
  /// Errors: as Memory::Allocate and MakeCopyQueue.
  static absl::StatusOr<std::unique_ptr<CardSlots>> Create(Memory& card, int num_slots,
                                                           int64_t slot_bytes);

  int size() const { return static_cast<int>(experts_.size()); }

  /// Copies from there are then done at the card's full rate; where the driver refuses that, a
  /// warning says so. REQUIRES: these bytes of the host outlive the object.
  void Pin(std::byte* host, int64_t bytes);

  /// Begins to copy an expert of the host's, whose bytes stay until Wait, into a slot. REQUIRES: as
  /// CopyQueue::Begin. Errors: Internal - the device is lost; so all others here.
  absl::Status Begin(const FfnWeights& expert, int slot);
  /// What lies in the slot, or is under way to it. REQUIRES: something was.
  const FfnWeights& At(int slot) const { return experts_[static_cast<size_t>(slot)]; }

  /// As CopyQueue's.
  absl::Status Precede() { return copies_->Precede(); }
  absl::Status Follow() { return copies_->Follow(); }
  /// For all copies that were begun.
  absl::Status Wait();

 private:
  CardSlots(int num_slots, int64_t slot_bytes)
      : slot_bytes_(slot_bytes), experts_(static_cast<size_t>(num_slots)) {}

  const int64_t slot_bytes_;
  Array bytes_;                      // [size()] of slot_bytes_
  std::vector<FfnWeights> experts_;  // by slot
  bool copying_ = false;             // and not waited for
  std::unique_ptr<CopyQueue> copies_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_CARD_SLOTS_H_
