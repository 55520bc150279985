#include "worker/experts/card_slots.h"

#include <utility>

#include "absl/memory/memory.h"
#include "base/check.h"
#include "base/int_math.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

constexpr int64_t kSlotAlignment = 256;  // of a card's loads

/// Where the matrices of an expert lie: [first, first + bytes).
struct Extent {
  const std::byte* first = nullptr;
  int64_t bytes = 0;
};

Extent ExtentOf(const FfnWeights& weights) {
  const std::byte* first = nullptr;
  const std::byte* end = nullptr;
  const auto cover = [&](const std::byte* data, int64_t bytes) {
    if (data == nullptr) return;
    if (first == nullptr || data < first) first = data;
    if (end == nullptr || data + bytes > end) end = data + bytes;
  };
  for (const Matrix* w : {&weights.gate, &weights.up, &weights.down}) {
    cover(w->data, MatrixBytes(*w));
    cover(reinterpret_cast<const std::byte*>(w->scale_inv),
          Fp8Blocks(w->rows) * Fp8Blocks(w->cols) * static_cast<int64_t>(sizeof(float)));
  }
  return {first, end - first};
}

/// The same matrices where their bytes were copied to.
FfnWeights MovedTo(FfnWeights weights, const std::byte* from, const std::byte* to) {
  for (Matrix* w : {&weights.gate, &weights.up, &weights.down}) {
    w->data = to + (w->data - from);
    if (w->scale_inv != nullptr) {
      w->scale_inv = reinterpret_cast<const float*>(
          to + (reinterpret_cast<const std::byte*>(w->scale_inv) - from));
    }
  }
  return weights;
}

}  // namespace

int64_t CardSlots::BytesFor(int64_t expert_bytes) { return RoundUp(expert_bytes, kSlotAlignment); }

absl::StatusOr<std::unique_ptr<CardSlots>> CardSlots::Create(Memory& card, int num_slots,
                                                             int64_t slot_bytes) {
  auto slots = absl::WrapUnique(new CardSlots(num_slots, slot_bytes));
  CARAVAN_ASSIGN_OR_RETURN(slots->bytes_,
                           card.Allocate(num_slots * slot_bytes, Memory::Use::kWhole));
  CARAVAN_ASSIGN_OR_RETURN(slots->copies_, card.MakeCopyQueue());
  return slots;
}

void CardSlots::Pin(std::byte* host, int64_t bytes) {
  const absl::Status pinned = copies_->Pin(host, bytes);
  if (!pinned.ok()) LogWarning("experts_not_pinned", {{"why", pinned.message()}});
}

absl::Status CardSlots::Begin(const FfnWeights& expert, int slot) {
  const Extent extent = ExtentOf(expert);
  CARAVAN_CHECK(extent.bytes <= slot_bytes_);
  std::byte* const to = bytes_.data() + slot * slot_bytes_;
  CARAVAN_RETURN_IF_ERROR(copies_->Begin(extent.first, extent.bytes, to));
  experts_[static_cast<size_t>(slot)] = MovedTo(expert, extent.first, to);
  copying_ = true;
  return absl::OkStatus();
}

absl::Status CardSlots::Wait() {
  if (!std::exchange(copying_, false)) return absl::OkStatus();
  return copies_->Wait();
}

}  // namespace caravan
