#include "base/buffer.h"

#include <errno.h>
#include <sys/mman.h>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/int_math.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

constexpr int64_t kPageBytes = 4096;
constexpr int64_t kLargePageBytes = int64_t{2} << 20;

absl::Status Refused(int64_t num_bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat("the system refuses ", FormatByteSize(num_bytes), " of memory"));
}

/// Moves a mapping to where it has room to grow, as far from a large page's begin as it was: so its
/// large pages stay such. MAP_FAILED: it could not, and is as it was.
void* GrowElsewhere(std::byte* data, int64_t old_bytes, int64_t new_bytes) {
  const int64_t most = RoundUp(new_bytes, kPageBytes) + kLargePageBytes;
  void* const room = ::mmap(nullptr, static_cast<size_t>(most), PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return MAP_FAILED;
  std::byte* const begin = static_cast<std::byte*>(room);
  const uintptr_t before =
      (reinterpret_cast<uintptr_t>(data) - reinterpret_cast<uintptr_t>(begin)) % kLargePageBytes;
  std::byte* const to = begin + before;
  void* const moved = ::mremap(data, static_cast<size_t>(old_bytes), static_cast<size_t>(new_bytes),
                               MREMAP_MAYMOVE | MREMAP_FIXED, to);
  // Not the middle: where that failed it may be another thread's by now.
  if (before > 0) ::munmap(begin, before);
  ::munmap(to + (most - kLargePageBytes), static_cast<size_t>(kLargePageBytes) - before);
  return moved;
}

}  // namespace

absl::StatusOr<Buffer> Buffer::Allocate(int64_t num_bytes) {
  CARAVAN_CHECK(num_bytes >= 0);
  Buffer buffer;
  if (num_bytes == 0) return buffer;
  void* const data = ::mmap(nullptr, static_cast<size_t>(num_bytes), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return Refused(num_bytes);
  }
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = num_bytes;
  return buffer;
}

void Buffer::PreferLargePages() {
  // Where it fails there are none, and nothing else changes.
  if (data_ != nullptr) ::madvise(data_, static_cast<size_t>(size_), MADV_HUGEPAGE);
}

absl::Status Buffer::Resize(int64_t num_bytes) {
  CARAVAN_CHECK(num_bytes >= 0);
  if (num_bytes == size_) return absl::OkStatus();
  if (data_ == nullptr || num_bytes == 0) {
    CARAVAN_ASSIGN_OR_RETURN(*this, Allocate(num_bytes));
    return absl::OkStatus();
  }
  const auto old_size = static_cast<size_t>(size_);
  const auto in_place = [&] {
    return ::mremap(data_, old_size, static_cast<size_t>(num_bytes), 0);
  };
  void* resized = in_place();
  if (resized == MAP_FAILED && errno == EAGAIN) {  // more than may be locked
    ::munlock(data_, old_size);
    resized = in_place();
  }
  if (resized == MAP_FAILED) resized = GrowElsewhere(data_, size_, num_bytes);
  if (resized == MAP_FAILED) return Refused(num_bytes);
  data_ = static_cast<std::byte*>(resized);
  size_ = num_bytes;
  return absl::OkStatus();
}

bool Buffer::Lock() { return data_ == nullptr || ::mlock(data_, static_cast<size_t>(size_)) == 0; }

Buffer::~Buffer() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(size_));
}

}  // namespace caravan
