#ifndef CARAVAN_COORDINATOR_HTTP_ACCESS_POLICY_H_
#define CARAVAN_COORDINATOR_HTTP_ACCESS_POLICY_H_

// Who may call: holders of a key; without keys, whoever is on this machine. A web page from
// elsewhere in a browser of this machine is not: without keys its Origin, and the Host that a
// rebound DNS name leaves, are refused.

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "coordinator/http/api_keys.h"
#include "coordinator/http/http_message.h"

namespace caravan {

/// Immutable, thread-safe.
class AccessPolicy {
 public:
  /// Without keys: this machine only.
  explicit AccessPolicy(std::optional<ApiKeys> keys) : keys_(std::move(keys)) {}

  bool has_keys() const { return keys_.has_value(); }

  /// Errors: Unauthenticated - no key, or a wrong one; PermissionDenied - a page or a name from
  ///         elsewhere, where there are no keys.
  absl::Status Check(const HttpRequest& request) const;

  /// What lets the page that asks read the answer (CORS); nothing for what is not a page's request
  /// or may not be read.
  HttpHeaders CorsHeaders(const HttpRequest& request) const;

 private:
  const std::optional<ApiKeys> keys_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_ACCESS_POLICY_H_
