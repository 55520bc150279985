#ifndef CARAVAN_COORDINATOR_HTTP_HTTP_SERVER_H_
#define CARAVAN_COORDINATOR_HTTP_HTTP_SERVER_H_

// HTTP/1.1 by Boost.Beast on a few threads, for thousands of connections: none of them costs a
// thread, and none can hold up another.

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/http/api_keys.h"
#include "coordinator/http/http_limits.h"
#include "coordinator/http/http_observer.h"
#include "coordinator/http/router.h"

namespace caravan {

/// Serves from Start until Stop. Thread-safe.
class HttpServer {
 public:
  struct Options {
    std::string listen;           // HOST:PORT; port 0: any free one
    std::optional<ApiKeys> keys;  // without: loopback only
    int num_threads = 2;
    HttpLimits limits;
    HttpObserver* observer = nullptr;  // outlives the server; may be null
  };

  /// Raises the process's soft limit of open files to its hard one; where that is too low for
  /// limits.max_connections, fewer are taken, and the log says so.
  /// Errors: InvalidArgument - not HOST:PORT, an address that is in use or not this machine's, or
  ///         one that is not loopback although there are no keys.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(Options options, Router router);
  virtual ~HttpServer() = default;

  /// HOST:PORT that is listened on.
  virtual std::string address() const = 0;

  /// No connection is taken any more; answers under way have `grace` to end, then all is closed.
  /// No handler runs any more once this returns. Responders may still be called until the
  /// destructor. Idempotent. REQUIRES: not called by a handler.
  virtual void Stop(absl::Duration grace) = 0;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_HTTP_SERVER_H_
