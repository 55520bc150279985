#include "model/gguf/gguf_metadata.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "model/utf8_stream.h"

namespace caravan {
namespace {

constexpr size_t kMaxKeyBytes = 65535;                  // the format's own bound
constexpr uint64_t kMaxArrayCount = uint64_t{1} << 24;  // far past any vocabulary or its merges
constexpr size_t kMinPairBytes = 8 + 1 + 4 + 1;         // length, key, type, value

/// Bytes of one value; 0 for strings and arrays, nullopt for a type that the format has not.
std::optional<size_t> FixedBytes(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return std::nullopt;
}

bool IsKey(absl::string_view key) {
  return !key.empty() && key.size() <= kMaxKeyBytes &&
         std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c <= '~'; });
}

template <std::unsigned_integral T>
T MustTake(GgufCursor& cursor) {
  T value = 0;
  CARAVAN_CHECK(cursor.Take(value));  // The size was checked when the pair was taken.
  return value;
}

/// The next value, of an integer type. Nullopt: of another type, or not below 2^63.
std::optional<int64_t> TakeInt(GgufType type, GgufCursor& cursor) {
  switch (type) {
    case GgufType::kUint8:
      return MustTake<uint8_t>(cursor);
    case GgufType::kInt8:
      return static_cast<int8_t>(MustTake<uint8_t>(cursor));
    case GgufType::kUint16:
      return MustTake<uint16_t>(cursor);
    case GgufType::kInt16:
      return static_cast<int16_t>(MustTake<uint16_t>(cursor));
    case GgufType::kUint32:
      return MustTake<uint32_t>(cursor);
    case GgufType::kInt32:
      return static_cast<int32_t>(MustTake<uint32_t>(cursor));
    case GgufType::kUint64: {
      const uint64_t value = MustTake<uint64_t>(cursor);
      if (value > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    case GgufType::kInt64:
      return static_cast<int64_t>(MustTake<uint64_t>(cursor));
    default:
      return std::nullopt;
  }
}

absl::Status Malformed(absl::string_view what) { return absl::InvalidArgumentError(what); }

absl::Status Truncated(const GgufCursor& cursor) {
  return Malformed(absl::StrCat("truncated: the value does not end before the file does, ",
                                cursor.remaining(), " bytes on"));
}

}  // namespace

double ShortestDecimal(float value) {
  char text[32];  // the longest float is shorter
  const std::to_chars_result end = std::to_chars(text, text + sizeof(text), value);
  double decimal = 0;
  std::from_chars(text, end.ptr, decimal);
  return decimal;
}

absl::StatusOr<GgufMetadata::Value> GgufMetadata::TakeValue(GgufCursor& cursor) {
  uint32_t type = 0;
  if (!cursor.Take(type)) return Truncated(cursor);
  Value value;
  value.is_array = type == static_cast<uint32_t>(GgufType::kArray);
  if (value.is_array) {
    if (!cursor.Take(type) || !cursor.Take(value.count)) return Truncated(cursor);
    if (type == static_cast<uint32_t>(GgufType::kArray)) {
      return Malformed("is an array of arrays, which is not supported");
    }
    if (value.count > kMaxArrayCount) {
      return Malformed(absl::StrCat("is an array of ", value.count, " elements; at most ",
                                    kMaxArrayCount, " are read"));
    }
  }
  value.type = static_cast<GgufType>(type);
  const std::optional<size_t> fixed_bytes = FixedBytes(value.type);
  if (!fixed_bytes.has_value()) {
    return Malformed(absl::StrCat("has the unknown type ", type));
  }
  if (*fixed_bytes > 0) {  // No product overflows: the count is capped.
    if (!cursor.TakeBytes(value.count * *fixed_bytes, value.bytes)) return Truncated(cursor);
  } else {
    GgufCursor ahead = cursor;
    absl::string_view text;
    for (uint64_t i = 0; i < value.count; ++i) {
      if (!ahead.TakeString(text)) return Truncated(ahead);
    }
    CARAVAN_CHECK(cursor.TakeBytes(ahead.offset() - cursor.offset(), value.bytes));
  }
  if (value.type == GgufType::kBool &&
      std::any_of(value.bytes.begin(), value.bytes.end(),
                  [](std::byte byte) { return byte > std::byte{1}; })) {
    return Malformed("holds a bool that is neither 0 nor 1");
  }
  return value;
}

absl::StatusOr<GgufMetadata> GgufMetadata::Parse(GgufCursor& cursor, uint64_t count,
                                                 absl::string_view origin) {
  GgufMetadata metadata(origin);
  metadata.values_.reserve(
      static_cast<size_t>(std::min<uint64_t>(count, cursor.remaining() / kMinPairBytes)));
  for (uint64_t i = 0; i < count; ++i) {
    absl::string_view key;
    if (!cursor.TakeString(key)) {
      return Malformed(absl::StrCat(
          origin, ": truncated: the file ends within its metadata, at key ", i + 1, " of ", count));
    }
    if (!IsKey(key)) {
      return Malformed(absl::StrCat(origin, ": metadata: key ", i + 1, " of ", count,
                                    " is not a name of 1 to 65535 printable ASCII characters"));
    }
    absl::StatusOr<Value> value = TakeValue(cursor);
    if (!value.ok()) return metadata.Error(key, value.status().message());
    if (!metadata.values_.emplace(key, *value).second) return metadata.Error(key, "is repeated");
  }
  return metadata;
}

absl::Status GgufMetadata::Error(absl::string_view key, absl::string_view what) const {
  return absl::InvalidArgumentError(absl::StrCat(origin_, ": metadata: key \"", key, "\" ", what));
}

const GgufMetadata::Value* GgufMetadata::Find(absl::string_view key) const {
  const auto it = values_.find(key);
  return it == values_.end() ? nullptr : &it->second;
}

template <typename T>
absl::StatusOr<T> GgufMetadata::Absent(absl::string_view key, std::optional<T> fallback) const {
  if (fallback.has_value()) return *std::move(fallback);
  return Error(key, "is missing");
}

absl::StatusOr<int64_t> GgufMetadata::Int(absl::string_view key, int64_t min, int64_t max,
                                          std::optional<int64_t> fallback) const {
  const Value* const value = Find(key);
  if (value == nullptr) return Absent(key, std::move(fallback));
  GgufCursor cursor(value->bytes);
  const std::optional<int64_t> number =
      value->is_array ? std::nullopt : TakeInt(value->type, cursor);
  if (!number.has_value() || *number < min || *number > max) {
    return Error(key, absl::StrCat("must be an integer from ", min, " to ", max));
  }
  return *number;
}

absl::StatusOr<double> GgufMetadata::Number(absl::string_view key,
                                            std::optional<double> fallback) const {
  const Value* const value = Find(key);
  if (value == nullptr) return Absent(key, std::move(fallback));
  std::optional<double> number;
  if (!value->is_array) {
    GgufCursor cursor(value->bytes);
    if (value->type == GgufType::kFloat32) {
      number = ShortestDecimal(std::bit_cast<float>(MustTake<uint32_t>(cursor)));
    } else if (value->type == GgufType::kFloat64) {
      number = std::bit_cast<double>(MustTake<uint64_t>(cursor));
    } else if (const std::optional<int64_t> integer = TakeInt(value->type, cursor)) {
      number = static_cast<double>(*integer);
    }
  }
  if (!number.has_value() || !std::isfinite(*number)) return Error(key, "must be a finite number");
  return *number;
}

absl::StatusOr<bool> GgufMetadata::Bool(absl::string_view key, std::optional<bool> fallback) const {
  const Value* const value = Find(key);
  if (value == nullptr) return Absent(key, std::move(fallback));
  if (value->is_array || value->type != GgufType::kBool) return Error(key, "must be a bool");
  return value->bytes[0] == std::byte{1};
}

absl::StatusOr<std::string> GgufMetadata::String(absl::string_view key,
                                                 std::optional<std::string> fallback) const {
  const Value* const value = Find(key);
  if (value == nullptr) return Absent(key, std::move(fallback));
  if (value->is_array || value->type != GgufType::kString) return Error(key, "must be a string");
  GgufCursor cursor(value->bytes);
  absl::string_view text;
  CARAVAN_CHECK(cursor.TakeString(text));
  if (FindInvalidUtf8(text).has_value()) return Error(key, "is not valid UTF-8");
  return std::string(text);
}

absl::StatusOr<std::vector<absl::string_view>> GgufMetadata::Strings(absl::string_view key) const {
  const Value* const value = Find(key);
  if (value == nullptr) return Error(key, "is missing");
  if (!value->is_array || value->type != GgufType::kString) {
    return Error(key, "must be an array of strings");
  }
  GgufCursor cursor(value->bytes);
  std::vector<absl::string_view> strings(static_cast<size_t>(value->count));
  for (size_t i = 0; i < strings.size(); ++i) {
    CARAVAN_CHECK(cursor.TakeString(strings[i]));
    if (FindInvalidUtf8(strings[i]).has_value()) {
      return Error(key, absl::StrCat("is not valid UTF-8 at element ", i));
    }
  }
  return strings;
}

absl::StatusOr<std::vector<int64_t>> GgufMetadata::Ints(absl::string_view key) const {
  const Value* const value = Find(key);
  if (value == nullptr) return Error(key, "is missing");
  GgufCursor cursor(value->bytes);
  std::vector<int64_t> numbers;
  if (value->is_array) {
    numbers.reserve(static_cast<size_t>(value->count));
    while (numbers.size() < value->count) {
      const std::optional<int64_t> number = TakeInt(value->type, cursor);
      if (!number.has_value()) break;
      numbers.push_back(*number);
    }
  }
  if (!value->is_array || numbers.size() < value->count) {
    return Error(key, "must be an array of integers below 2^63");
  }
  return numbers;
}

}  // namespace caravan
