#ifndef CARAVAN_WORKER_HIDDEN_SLOTS_H_
#define CARAVAN_WORKER_HIDDEN_SLOTS_H_

// Places for the hidden states of steps, each [max_step_tokens, hidden_size] f32 in the backend's
// memory: a step keeps its place from when its activations come until they have been sent on.

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "kernels/memory.h"

namespace caravan {

/// Thread-safe.
class HiddenSlots {
 public:
  /// `memory` outlives the object and what was taken. REQUIRES: count >= 1.
  /// Errors: as Memory::Allocate.
  static absl::StatusOr<std::unique_ptr<HiddenSlots>> Create(Memory& memory, int count,
                                                             int64_t bytes);

  /// Waits for a free slot. It is free again when the last copy of the array is gone: whatever was
  /// asked of the device with it must be done by then. nullopt after Close.
  std::optional<Array> Take();

  /// Whoever waits returns. Idempotent.
  void Close();

 private:
  struct Slots;
  explicit HiddenSlots(std::shared_ptr<Slots> slots) : slots_(std::move(slots)) {}

  const std::shared_ptr<Slots> slots_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_HIDDEN_SLOTS_H_
