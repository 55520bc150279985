#ifndef CARAVAN_COORDINATOR_HTTP_HTTP_ERROR_H_
#define CARAVAN_COORDINATOR_HTTP_HTTP_ERROR_H_

// Errors in the shape that OpenAI's clients read:
//   {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
// and how an absl::Status becomes one.

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/http/http_message.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// Gives `status` the name of the request's field that is wrong ("param"). OK stays OK, and a
/// name that is there already stays.
absl::Status WithParam(absl::Status status, absl::string_view param);

/// Gives `status` a word for programs ("code"), such as "model_not_found". OK stays OK.
absl::Status WithErrorCode(absl::Status status, absl::string_view code);

/// 400 InvalidArgument, OutOfRange; 401 Unauthenticated; 403 PermissionDenied; 404 NotFound;
/// 409 FailedPrecondition, AlreadyExists, Aborted; 429 ResourceExhausted; 499 Cancelled; 501
/// Unimplemented; 503 Unavailable; 504 DeadlineExceeded; 500 everything else.
/// REQUIRES: !status.ok().
int HttpStatusOf(const absl::Status& status);

/// {"error": ...} for a status with what WithParam and WithErrorCode gave it.
/// REQUIRES: !status.ok().
nlohmann::json ErrorJson(const absl::Status& status);

/// ErrorJson with its status; 429 and 503 say when to try again, 501 that there is no use in it.
/// REQUIRES: !status.ok().
HttpResponse ErrorResponse(const absl::Status& status);

/// An error that has no absl::Status of its own, such as 405 or 413.
HttpResponse ErrorResponse(int http_status, absl::string_view message, absl::string_view code = "");

/// 200 with the value, or ErrorResponse.
HttpResponse JsonResponse(const absl::StatusOr<nlohmann::json>& value);

/// `value` as a response's body. Text that is not UTF-8 gets U+FFFD.
std::string JsonText(const nlohmann::json& value);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_HTTP_ERROR_H_
