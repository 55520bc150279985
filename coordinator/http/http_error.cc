#include "coordinator/http/http_error.h"

#include <optional>
#include <string>

#include "absl/strings/cord.h"
#include "base/check.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr char kParamPayload[] = "caravan/param";
constexpr char kCodePayload[] = "caravan/code";

// A client that was refused for want of room may try again then.
constexpr char kRetryAfterSeconds[] = "1";

absl::Status WithPayload(absl::Status status, const char* type, absl::string_view value) {
  if (!status.ok() && !status.GetPayload(type).has_value()) {
    status.SetPayload(type, absl::Cord(value));
  }
  return status;
}

json Payload(const absl::Status& status, const char* type) {
  const absl::optional<absl::Cord> payload = status.GetPayload(type);
  return payload.has_value() ? json(std::string(*payload)) : json(nullptr);
}

const char* ErrorType(int http_status) {
  if (http_status == 429) return "rate_limit_error";
  return http_status >= 500 ? "server_error" : "invalid_request_error";
}

json MakeErrorJson(int http_status, absl::string_view message, json param, json code) {
  return {{"error",
           {{"message", std::string(message)},
            {"type", ErrorType(http_status)},
            {"param", std::move(param)},
            {"code", std::move(code)}}}};
}

HttpResponse MakeErrorResponse(int http_status, const json& body) {
  HttpResponse response;
  response.status = http_status;
  response.body = JsonText(body);
  if (http_status == 429 || http_status == 503) {
    response.headers.emplace_back("Retry-After", kRetryAfterSeconds);
  }
  // OpenAI's clients try again after any other 5xx.
  if (http_status == 501) response.headers.emplace_back("x-should-retry", "false");
  if (http_status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

}  // namespace

absl::Status WithParam(absl::Status status, absl::string_view param) {
  return WithPayload(std::move(status), kParamPayload, param);
}

absl::Status WithErrorCode(absl::Status status, absl::string_view code) {
  return WithPayload(std::move(status), kCodePayload, code);
}

int HttpStatusOf(const absl::Status& status) {
  CARAVAN_CHECK(!status.ok());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      // google.rpc's, too. With any 5xx OpenAI's clients would ask again for what was cancelled.
      return 499;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

json ErrorJson(const absl::Status& status) {
  return MakeErrorJson(HttpStatusOf(status), status.message(), Payload(status, kParamPayload),
                       Payload(status, kCodePayload));
}

HttpResponse ErrorResponse(const absl::Status& status) {
  return MakeErrorResponse(HttpStatusOf(status), ErrorJson(status));
}

HttpResponse ErrorResponse(int http_status, absl::string_view message, absl::string_view code) {
  return MakeErrorResponse(http_status,
                           MakeErrorJson(http_status, message, nullptr,
                                         code.empty() ? json(nullptr) : json(std::string(code))));
}

HttpResponse JsonResponse(const absl::StatusOr<nlohmann::json>& value) {
  if (!value.ok()) return ErrorResponse(value.status());
  return {200, "application/json", JsonText(*value), {}};
}

std::string JsonText(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace caravan
