#include "coordinator/openai/request_fields.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/http/http_error.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr char kBody[] = "the request's body";

// A parser's complaint quotes what it has read, which may be long.
constexpr size_t kMaxMessageBytes = 400;

}  // namespace

absl::StatusOr<json> ParseRequestBody(absl::string_view body) {
  std::string bad_field;
  absl::StatusOr<json> parsed = ParseJson(body, kBody, &bad_field);
  if (!parsed.ok()) {
    const absl::Status status =
        absl::InvalidArgumentError(parsed.status().message().substr(0, kMaxMessageBytes));
    return bad_field.empty() ? status : WithParam(status, bad_field.substr(0, kMaxMessageBytes));
  }
  if (!parsed->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(kBody, " must be a JSON object"));
  }
  return parsed;
}

absl::Status ParamError(absl::string_view param, absl::string_view what) {
  return WithParam(absl::InvalidArgumentError(absl::StrCat(param, ": ", what)), param);
}

absl::StatusOr<RequestFields> RequestFields::Of(const json& object, absl::string_view param) {
  if (!object.is_object()) return ParamError(param, "must be an object");
  CARAVAN_ASSIGN_OR_RETURN(
      JsonFields fields, JsonFields::Of(object, param.empty() ? absl::string_view(kBody) : param));
  return RequestFields(object, std::move(fields), std::string(param));
}

const json& RequestFields::Value(absl::string_view name) const {
  static const json& null = *new json;
  const auto it = object_->find(std::string(name));
  return it == object_->end() ? null : *it;
}

std::string RequestFields::Param(absl::string_view name) const {
  return absl::StrCat(param_, param_.empty() ? "" : ".", name);
}

template <typename T>
absl::StatusOr<T> RequestFields::Named(absl::string_view name, absl::StatusOr<T> value) const {
  if (!value.ok()) return WithParam(value.status(), Param(name));
  return value;
}

absl::StatusOr<int64_t> RequestFields::Int(absl::string_view name, int64_t min, int64_t max,
                                           std::optional<int64_t> fallback) const {
  return Named(name, fields_.Int(name, min, max, fallback));
}

absl::StatusOr<double> RequestFields::Number(absl::string_view name, double min, double max,
                                             std::optional<double> fallback) const {
  return Named(name, fields_.Number(name, min, max, fallback));
}

absl::StatusOr<bool> RequestFields::Bool(absl::string_view name,
                                         std::optional<bool> fallback) const {
  return Named(name, fields_.Bool(name, fallback));
}

absl::StatusOr<std::string> RequestFields::String(absl::string_view name,
                                                  std::optional<std::string> fallback) const {
  return Named(name, fields_.String(name, std::move(fallback)));
}

}  // namespace caravan
