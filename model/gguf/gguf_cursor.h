#ifndef CARAVAN_MODEL_GGUF_GGUF_CURSOR_H_
#define CARAVAN_MODEL_GGUF_GGUF_CURSOR_H_

// Little-endian values one after the other, as GGUF's header has them. Never reads past the end,
// whatever the bytes say.

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace caravan {

/// Borrows the bytes, as do the views that it gives. After a call that returned false it stays
/// where it was.
class GgufCursor {
 public:
  explicit GgufCursor(absl::Span<const std::byte> bytes) : bytes_(bytes) {}

  size_t offset() const { return offset_; }
  size_t remaining() const { return bytes_.size() - offset_; }

  template <std::unsigned_integral T>
  bool Take(T& value) {
    if (remaining() < sizeof(T)) return false;
    value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
      const auto byte = std::to_integer<uint64_t>(bytes_[offset_ + i]);
      value = static_cast<T>(value | byte << (8 * i));
    }
    offset_ += sizeof(T);
    return true;
  }

  bool TakeBytes(uint64_t size, absl::Span<const std::byte>& bytes) {
    if (remaining() < size) return false;
    bytes = bytes_.subspan(offset_, static_cast<size_t>(size));
    offset_ += static_cast<size_t>(size);
    return true;
  }

  /// A u64 length, then that many bytes; not checked to be UTF-8.
  bool TakeString(absl::string_view& text) {
    const size_t begin = offset_;
    uint64_t size = 0;
    absl::Span<const std::byte> bytes;
    if (!Take(size) || !TakeBytes(size, bytes)) {
      offset_ = begin;
      return false;
    }
    text = absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return true;
  }

 private:
  absl::Span<const std::byte> bytes_;
  size_t offset_ = 0;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_GGUF_GGUF_CURSOR_H_
