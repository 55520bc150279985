#ifndef CARAVAN_BASE_JSON_H_
#define CARAVAN_BASE_JSON_H_

// JSON from outside, read with errors that name the file and the field.

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// Parses `text`. `origin` names it in errors. After an error within the value of one of the
/// outermost object's fields, `bad_field` (if given) is that field's name, else empty.
/// Errors: InvalidArgument - not JSON (says where), a repeated key, nesting past 64.
absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view origin,
                                         std::string* bad_field = nullptr);

/// Reads and parses the file at `path`.
/// Errors: NotFound - no such file; InvalidArgument - as ParseJson, or larger than `max_bytes`.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path,
                                            int64_t max_bytes = int64_t{1} << 30);

/// The fields of one JSON object. Every error is InvalidArgument and names origin and field.
/// Borrows the object.
class JsonFields {
 public:
  /// Errors: InvalidArgument - `object` is not an object.
  static absl::StatusOr<JsonFields> Of(const nlohmann::json& object, absl::string_view origin);

  bool Has(absl::string_view name) const;  // Present and not null.

  /// Integers in [min, max]. A missing (or null) field is `fallback` where one is given, else an
  /// error.
  absl::StatusOr<int64_t> Int(absl::string_view name, int64_t min, int64_t max,
                              std::optional<int64_t> fallback = std::nullopt) const;
  /// Finite numbers in [min, max].
  absl::StatusOr<double> Number(absl::string_view name, double min, double max,
                                std::optional<double> fallback = std::nullopt) const;
  absl::StatusOr<bool> Bool(absl::string_view name,
                            std::optional<bool> fallback = std::nullopt) const;
  absl::StatusOr<std::string> String(absl::string_view name,
                                     std::optional<std::string> fallback = std::nullopt) const;
  absl::StatusOr<JsonFields> Object(absl::string_view name) const;
  absl::StatusOr<const nlohmann::json*> Array(absl::string_view name) const;

  /// An InvalidArgument that names origin and field.
  absl::Status Error(absl::string_view name, absl::string_view what) const;

 private:
  JsonFields(const nlohmann::json& object, std::string origin)
      : object_(&object), origin_(std::move(origin)) {}
  const nlohmann::json* Find(absl::string_view name) const;

  const nlohmann::json* object_;
  std::string origin_;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_JSON_H_
