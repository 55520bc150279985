#ifndef CARAVAN_TESTS_SUPPORT_GGUF_WRITER_H_
#define CARAVAN_TESTS_SUPPORT_GGUF_WRITER_H_

// The bytes of GGUF files. Written from the format's definition (ggml-org/ggml, docs/gguf.md) and
// with nothing of model/gguf_*: the two check each other.

#include <concepts>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace caravan {

template <typename T>
concept GgufNumber = std::integral<T> || std::floating_point<T>;

/// Appends the value's bytes, lowest first.
template <GgufNumber T>
void AppendLittleEndian(T value, std::string& bytes) {
  if constexpr (std::same_as<T, float>) {
    AppendLittleEndian(__builtin_bit_cast(uint32_t, value), bytes);
  } else if constexpr (std::same_as<T, double>) {
    AppendLittleEndian(__builtin_bit_cast(uint64_t, value), bytes);
  } else {
    for (size_t i = 0; i < sizeof(T); ++i) {
      bytes.push_back(static_cast<char>(static_cast<uint64_t>(value) >> (8 * i)));
    }
  }
}

/// Appends a u64 length and the text.
void AppendGgufString(absl::string_view text, std::string& bytes);

/// One file. The caller may ask for what is not well formed: the writer checks nothing.
class GgufWriter {
 public:
  uint32_t version = 3;
  /// Of the data. Written as general.alignment by whoever wants it there: 32 is what readers take
  /// it for otherwise.
  uint64_t alignment = 32;

  /// The type in the file is that of `value`: uint32_t gives a uint32.
  template <GgufNumber T>
  void Set(absl::string_view key, T value) {
    AppendKey(key, TypeCode<T>());
    AppendLittleEndian(value, pairs_);
  }
  void SetString(absl::string_view key, absl::string_view value);
  template <GgufNumber T>
  void SetArray(absl::string_view key, const std::vector<T>& values) {
    AppendArray(key, TypeCode<T>(), values.size());
    for (const T value : values) AppendLittleEndian(value, pairs_);
  }
  void SetStrings(absl::string_view key, const std::vector<std::string>& values);
  /// A pair of whatever type and bytes.
  void SetRaw(absl::string_view key, uint32_t type, absl::string_view bytes);

  /// `shape`: slowest dimension first. `type`: as the format numbers it. The data follow those of
  /// the tensor before, at the next multiple of the alignment.
  void AddTensor(absl::string_view name, const std::vector<int64_t>& shape, uint32_t type,
                 absl::string_view bytes);
  /// The same with an offset of the caller's; the bytes are appended all the same.
  void AddTensorAt(absl::string_view name, const std::vector<int64_t>& shape, uint32_t type,
                   uint64_t offset, absl::string_view bytes);

  uint64_t num_tensors() const { return num_tensors_; }

  /// The whole file.
  std::string Bytes() const;

 private:
  template <GgufNumber T>
  static constexpr uint32_t TypeCode() {
    if constexpr (std::same_as<T, bool>) return 7;
    if constexpr (std::same_as<T, float>) return 6;
    if constexpr (std::same_as<T, double>) return 12;
    if constexpr (sizeof(T) == 1) return std::signed_integral<T> ? 1 : 0;
    if constexpr (sizeof(T) == 2) return std::signed_integral<T> ? 3 : 2;
    if constexpr (sizeof(T) == 4) return std::signed_integral<T> ? 5 : 4;
    return std::signed_integral<T> ? 11 : 10;
  }
  void AppendKey(absl::string_view key, uint32_t type);
  void AppendArray(absl::string_view key, uint32_t element_type, uint64_t count);

  uint64_t num_pairs_ = 0;
  uint64_t num_tensors_ = 0;
  std::string pairs_;
  std::string infos_;
  std::string data_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_GGUF_WRITER_H_
