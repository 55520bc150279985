#ifndef CARAVAN_MODEL_GGUF_GGUF_METADATA_H_
#define CARAVAN_MODEL_GGUF_GGUF_METADATA_H_

// The key-value pairs of a GGUF file (ggml-org/ggml, docs/gguf.md):
//   string key | u32 type | value       string: u64 length, bytes
//   value of an array: u32 type of the elements | u64 count | elements
// Read with errors that name the file and the key, as JsonFields does for JSON.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/gguf/gguf_cursor.h"

namespace caravan {

/// Types of values, in the format's own numbers.
enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

/// Immutable, thread-safe. Borrows the bytes that it was parsed from: values are decoded when they
/// are asked for, so nothing is allocated on the word of a count.
class GgufMetadata {
 public:
  /// Takes `count` pairs from the cursor. `origin` names the file in errors.
  /// Errors: InvalidArgument - truncated; a key that is repeated, empty, longer than 65535 bytes or
  ///         not printable ASCII; an unknown type; a bool that is neither 0 nor 1; an array of
  ///         arrays, or of more than 2^24 elements. Each names the key, or its place where it has
  ///         no readable name.
  static absl::StatusOr<GgufMetadata> Parse(GgufCursor& cursor, uint64_t count,
                                            absl::string_view origin);

  const std::string& origin() const { return origin_; }
  bool Has(absl::string_view key) const { return values_.contains(key); }

  // Every error of the following is InvalidArgument: the key is missing and there is no `fallback`,
  // its value is of another type, out of range, or text that is not UTF-8.

  /// Integers of any type, in [min, max].
  absl::StatusOr<int64_t> Int(absl::string_view key, int64_t min, int64_t max,
                              std::optional<int64_t> fallback = std::nullopt) const;
  /// Numbers of any type, finite. A float32 gives the double with the fewest digits that rounds to
  /// it: 1e-6 is what somebody meant by the float32 0x358637bd, not 9.99999997475e-7.
  absl::StatusOr<double> Number(absl::string_view key,
                                std::optional<double> fallback = std::nullopt) const;
  absl::StatusOr<bool> Bool(absl::string_view key,
                            std::optional<bool> fallback = std::nullopt) const;
  absl::StatusOr<std::string> String(absl::string_view key,
                                     std::optional<std::string> fallback = std::nullopt) const;
  /// The views live as long as the bytes that were parsed.
  absl::StatusOr<std::vector<absl::string_view>> Strings(absl::string_view key) const;
  /// An array of integers of any type.
  absl::StatusOr<std::vector<int64_t>> Ints(absl::string_view key) const;

  /// An InvalidArgument that names file and key.
  absl::Status Error(absl::string_view key, absl::string_view what) const;

 private:
  struct Value {
    GgufType type = GgufType::kUint8;  // of the elements, of an array
    bool is_array = false;
    uint64_t count = 1;
    absl::Span<const std::byte> bytes;  // as in the file, without the array's own type and count
  };
  explicit GgufMetadata(absl::string_view origin) : origin_(origin) {}

  /// Null: no such key.
  const Value* Find(absl::string_view key) const;
  /// What a key that is missing gives.
  template <typename T>
  absl::StatusOr<T> Absent(absl::string_view key, std::optional<T> fallback) const;
  static absl::StatusOr<Value> TakeValue(GgufCursor& cursor);

  std::string origin_;
  absl::flat_hash_map<std::string, Value> values_;
};

/// The double that is written with the fewest digits that round to `value`.
double ShortestDecimal(float value);

}  // namespace caravan

#endif  // CARAVAN_MODEL_GGUF_GGUF_METADATA_H_
