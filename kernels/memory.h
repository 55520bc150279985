#ifndef CARAVAN_KERNELS_MEMORY_H_
#define CARAVAN_KERNELS_MEMORY_H_

// The memory that a backend computes in: the host's own, or a card's, of which the host knows only
// where its bytes lie.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/copy_queue.h"

namespace caravan {

/// Owns bytes of some Memory, which outlives it; movable. Aligned to 256 at least.
class Array {
 public:
  /// Holds nothing.
  Array() = default;
  /// As long as `owner` is kept, `bytes` lie at `data`.
  template <typename Owner>
  Array(Owner owner, std::byte* data, int64_t bytes)
      : owner_(std::make_shared<Owner>(std::move(owner))), data_(data), bytes_(bytes) {}

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  /// The same, as values of T.
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  float* floats() const { return as<float>(); }
  int64_t num_floats() const { return bytes_ / static_cast<int64_t>(sizeof(float)); }

 private:
  std::shared_ptr<void> owner_;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// Copies are done in the order of the operations of the backend whose memory it is. Threads may
/// call Allocate and CopyIn at the same time; all else is for the thread that uses the backend.
class Memory {
 public:
  enum class Use {
    kWhole,    // all of it is filled soon
    kByAndBy,  // backed where it is touched, as far as the memory can do that
  };

  virtual ~Memory() = default;

  /// Whether the host reads and writes it like any memory of its own.
  virtual bool is_host() const = 0;

  /// What its arrays have; 0: nobody counts (the host's). Any thread.
  virtual int64_t taken_bytes() const { return 0; }

  /// Zeroed. REQUIRES: bytes >= 0.
  /// Errors: ResourceExhausted - there is not so much, or not in the budget (says whose).
  virtual absl::StatusOr<Array> Allocate(int64_t bytes, Use use = Use::kByAndBy) = 0;

  /// From the host: `host` may change when this returns. Errors: Internal - the device is lost.
  virtual absl::Status CopyIn(const void* host, int64_t bytes, void* to) = 0;
  /// To the host: done when this returns.
  /// Errors: that of the first operation of the backend that failed; Internal - the device is lost.
  virtual absl::Status CopyOut(const void* from, int64_t bytes, void* host) = 0;
  /// Within the memory; the ranges do not overlap. Errors: as CopyIn.
  virtual absl::Status Copy(const void* from, int64_t bytes, void* to) = 0;
  /// All bits 0. Errors: as CopyIn.
  virtual absl::Status Clear(void* to, int64_t bytes) = 0;

  /// For copies beside the backend's work, which the backend outlives. REQUIRES: !is_host().
  /// Errors: Internal - the device has no more of them.
  virtual absl::StatusOr<std::unique_ptr<CopyQueue>> MakeCopyQueue() = 0;
};

/// The host's. Thread-safe.
Memory& HostMemory();

/// Room for so many values of T. Errors: as Memory::Allocate.
template <typename T>
absl::StatusOr<Array> AllocateValues(Memory& memory, int64_t count) {
  return memory.Allocate(count * static_cast<int64_t>(sizeof(T)));
}

/// `values` of the host in `memory`, for a backend to read: where they lie, if it can; else copied
/// to `place`, which has the room. Good until either changes. Errors: as Memory::CopyIn.
template <typename T>
absl::StatusOr<absl::Span<const T>> InMemory(Memory& memory, absl::Span<const T> values,
                                             const Array& place) {
  if (memory.is_host()) return values;
  const absl::Status copied =
      memory.CopyIn(values.data(), static_cast<int64_t>(values.size() * sizeof(T)), place.data());
  if (!copied.ok()) return copied;
  return absl::MakeConstSpan(place.as<const T>(), values.size());
}

/// `values` [count] for the host to read: where they lie, if it can; else copied to `copy`, which
/// grows to that. Good until either changes. Errors: as Memory::CopyOut.
template <typename T>
absl::StatusOr<absl::Span<const T>> OnHost(Memory& memory, const T* values, int64_t count,
                                           std::vector<T>& copy) {
  const auto size = static_cast<size_t>(count);
  if (memory.is_host()) return absl::MakeConstSpan(values, size);
  if (copy.size() < size) copy.resize(size);
  const absl::Status copied =
      memory.CopyOut(values, count * static_cast<int64_t>(sizeof(T)), copy.data());
  if (!copied.ok()) return copied;
  return absl::MakeConstSpan(copy).first(size);
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_MEMORY_H_
