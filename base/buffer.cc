#include "base/buffer.h"

#include <sys/mman.h>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/check.h"

namespace caravan {

absl::StatusOr<Buffer> Buffer::Allocate(int64_t num_bytes) {
  CARAVAN_CHECK(num_bytes >= 0);
  Buffer buffer;
  if (num_bytes == 0) return buffer;
  void* const data = ::mmap(nullptr, static_cast<size_t>(num_bytes), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the system refuses ", FormatByteSize(num_bytes), " of memory"));
  }
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = num_bytes;
  return buffer;
}

void Buffer::PreferLargePages() {
  // Where it fails there are none, and nothing else changes.
  if (data_ != nullptr) ::madvise(data_, static_cast<size_t>(size_), MADV_HUGEPAGE);
}

bool Buffer::Lock() { return data_ == nullptr || ::mlock(data_, static_cast<size_t>(size_)) == 0; }

Buffer::~Buffer() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(size_));
}

}  // namespace caravan
