#include "worker/hidden_slots.h"

#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/memory/memory.h"
#include "base/mutex.h"
#include "base/status_macros.h"

namespace caravan {

struct HiddenSlots::Slots {
  Mutex mu;
  CondVar changed;
  std::vector<Array> free ABSL_GUARDED_BY(mu);
  bool closed ABSL_GUARDED_BY(mu) = false;
};

absl::StatusOr<std::unique_ptr<HiddenSlots>> HiddenSlots::Create(Memory& memory, int count,
                                                                 int64_t bytes) {
  auto slots = std::make_shared<Slots>();
  MutexLock lock(&slots->mu);
  for (int i = 0; i < count; ++i) {
    CARAVAN_ASSIGN_OR_RETURN(Array slot, memory.Allocate(bytes));
    slots->free.push_back(std::move(slot));
  }
  return absl::WrapUnique(new HiddenSlots(slots));
}

std::optional<Array> HiddenSlots::Take() {
  Array slot;
  {
    MutexLock lock(&slots_->mu);
    while (slots_->free.empty() && !slots_->closed) slots_->changed.Wait(&slots_->mu);
    if (slots_->closed) return std::nullopt;
    slot = std::move(slots_->free.back());
    slots_->free.pop_back();
  }
  const auto give_back = [slots = slots_, slot](void*) {
    MutexLock lock(&slots->mu);
    slots->free.push_back(slot);
    slots->changed.SignalAll();
  };
  return Array(std::shared_ptr<void>(nullptr, give_back), slot.data(), slot.bytes());
}

void HiddenSlots::Close() {
  MutexLock lock(&slots_->mu);
  slots_->closed = true;
  slots_->changed.SignalAll();
}

}  // namespace caravan
