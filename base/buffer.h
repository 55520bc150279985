#ifndef CARAVAN_BASE_BUFFER_H_
#define CARAVAN_BASE_BUFFER_H_

// Large memory straight from the kernel: zeroed, page-aligned, backed only where it is touched.

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace caravan {

/// Owns its memory; movable.
class Buffer {
 public:
  Buffer() = default;
  /// Errors: ResourceExhausted - the kernel refuses that much. REQUIRES: num_bytes >= 0.
  static absl::StatusOr<Buffer> Allocate(int64_t num_bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  /// Asks for pages of 2 MiB, as far as the kernel gives them: for memory that is filled as a
  /// whole. A fault then backs 512 times as much; on a virtual machine one of 4 KiB was seen to
  /// take 19 us.
  void PreferLargePages();

  /// Backs all of it with memory that is not paged out. False: this process may not lock so much
  /// (RLIMIT_MEMLOCK), and nothing changed.
  bool Lock();

  /// Gives it another size. The bytes that stay keep their contents, maybe at another address; they
  /// are not copied, so no more memory is taken meanwhile than before or after. What is added is
  /// backed where it is touched, unless all was locked: then that is too, or nothing any more where
  /// this process may not lock so much. REQUIRES: num_bytes >= 0; nobody else knows its address.
  /// Errors: ResourceExhausted - the kernel refuses that much; what was locked may be so no more.
  absl::Status Resize(int64_t num_bytes);

  std::byte* data() const { return data_; }
  int64_t size() const { return size_; }  // in bytes
  float* floats() const { return reinterpret_cast<float*>(data_); }

 private:
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_BUFFER_H_
