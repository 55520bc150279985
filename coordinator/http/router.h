#ifndef CARAVAN_COORDINATOR_HTTP_ROUTER_H_
#define CARAVAN_COORDINATOR_HTTP_ROUTER_H_

// Which handler serves which method and path.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/http/http_message.h"
#include "coordinator/http/responder.h"

namespace caravan {

/// Called on the connection's own thread of control, so it must not block for long.
using HttpHandler = std::function<void(HttpRequest request, std::shared_ptr<Responder> responder)>;

struct RouteOptions {
  bool open = false;  // served without an API key
  int64_t max_body_bytes = kMaxBodyBytes;
};

/// Filled first, then only read: not thread-safe while it is filled.
class Router {
 public:
  struct Route {
    std::string method;
    std::string pattern;
    std::vector<std::string> segments;  // of the pattern
    HttpHandler handler;
    RouteOptions options;
  };
  struct Match {
    const Route* route = nullptr;  // nullptr: none for this method
    std::vector<std::string> path_parameters;
    std::string allowed_methods;  // of the path, for Allow; empty: no such path
  };

  /// `pattern` is a path such as /v1/models/{}: {} stands for one segment, and as the last segment
  /// {...} for one or more. What was added first goes first. GET routes serve HEAD too.
  void Handle(absl::string_view method, absl::string_view pattern, HttpHandler handler,
              RouteOptions options = {});

  /// `path` is percent-encoded.
  Match Find(absl::string_view method, absl::string_view path) const;

 private:
  std::vector<Route> routes_;
};

/// %41 becomes A. Errors: InvalidArgument - a % without two hexadecimal digits behind it.
absl::StatusOr<std::string> PercentDecode(absl::string_view text);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_ROUTER_H_
