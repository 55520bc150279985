#ifndef CARAVAN_COORDINATOR_OPENAI_REQUEST_FIELDS_H_
#define CARAVAN_COORDINATOR_OPENAI_REQUEST_FIELDS_H_

// The fields of a request's body. As JsonFields, but its errors carry the field's name as "param".

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/json.h"

namespace caravan {

/// Errors: InvalidArgument - not JSON, not an object, nested too deep, or a key is repeated; with
/// the
///         field in whose value that is as "param".
absl::StatusOr<nlohmann::json> ParseRequestBody(absl::string_view body);

/// An InvalidArgument with `param`; its message begins with it.
absl::Status ParamError(absl::string_view param, absl::string_view what);

/// Borrows the object.
class RequestFields {
 public:
  /// `param` names the object in errors; empty: the body itself.
  static absl::StatusOr<RequestFields> Of(const nlohmann::json& object,
                                          absl::string_view param = "");

  bool Has(absl::string_view name) const { return fields_.Has(name); }
  /// The field's value; null when it is missing.
  const nlohmann::json& Value(absl::string_view name) const;

  /// As JsonFields' of these names.
  absl::StatusOr<int64_t> Int(absl::string_view name, int64_t min, int64_t max,
                              std::optional<int64_t> fallback = std::nullopt) const;
  absl::StatusOr<double> Number(absl::string_view name, double min, double max,
                                std::optional<double> fallback = std::nullopt) const;
  absl::StatusOr<bool> Bool(absl::string_view name, std::optional<bool> fallback) const;
  absl::StatusOr<std::string> String(absl::string_view name,
                                     std::optional<std::string> fallback = std::nullopt) const;

  /// The field's name as errors give it, such as "messages[2].role".
  std::string Param(absl::string_view name) const;

 private:
  RequestFields(const nlohmann::json& object, JsonFields fields, std::string param)
      : object_(&object), fields_(std::move(fields)), param_(std::move(param)) {}

  template <typename T>
  absl::StatusOr<T> Named(absl::string_view name, absl::StatusOr<T> value) const;

  const nlohmann::json* object_;
  JsonFields fields_;
  std::string param_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_REQUEST_FIELDS_H_
