#include "coordinator/http/access_policy.h"

#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "cluster/address.h"
#include "coordinator/http/http_error.h"

namespace caravan {
namespace {

constexpr char kPreflightSeconds[] = "600";  // how long a browser need not ask again

}  // namespace

absl::Status AccessPolicy::Check(const HttpRequest& request) const {
  if (keys_.has_value()) {
    const absl::string_view authorization = request.Header("Authorization");
    if (keys_->Authorizes(authorization)) return absl::OkStatus();
    return WithErrorCode(
        absl::UnauthenticatedError(authorization.empty()
                                       ? "no API key: send the header \"Authorization: Bearer KEY\""
                                       : "the API key is not one that this server knows"),
        "invalid_api_key");
  }
  for (const char* header : {"Origin", "Host"}) {
    const absl::string_view value = request.Header(header);
    if (value.empty() || IsLoopbackName(value)) continue;
    return WithErrorCode(
        absl::PermissionDeniedError(absl::StrCat(
            header, " is \"", value,
            "\": without --api-key-file only localhost, 127.0.0.1 and [::1] are served")),
        absl::StrCat(absl::AsciiStrToLower(header), "_not_allowed"));
  }
  return absl::OkStatus();
}

HttpHeaders AccessPolicy::CorsHeaders(const HttpRequest& request) const {
  const absl::string_view origin = request.Header("Origin");
  if (origin.empty() || (!keys_.has_value() && !IsLoopbackName(origin))) return {};
  HttpHeaders headers = {
      // With keys a page must know one, so any page that does may read.
      {"Access-Control-Allow-Origin", keys_.has_value() ? "*" : std::string(origin)},
      {"Vary", "Origin"}};
  if (request.method == "OPTIONS") {
    headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, DELETE");
    const absl::string_view wanted = request.Header("Access-Control-Request-Headers");
    headers.emplace_back("Access-Control-Allow-Headers",
                         wanted.empty() ? "Authorization, Content-Type" : std::string(wanted));
    headers.emplace_back("Access-Control-Max-Age", kPreflightSeconds);
  }
  return headers;
}

}  // namespace caravan
