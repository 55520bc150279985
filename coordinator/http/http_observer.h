#ifndef CARAVAN_COORDINATOR_HTTP_HTTP_OBSERVER_H_
#define CARAVAN_COORDINATOR_HTTP_HTTP_OBSERVER_H_

// Hears what an HTTP server does, to count it.

#include "absl/strings/string_view.h"

namespace caravan {

/// Called by any of the server's threads, several at a time; must not block.
class HttpObserver {
 public:
  virtual ~HttpObserver() = default;

  virtual void OnConnectionOpened() = 0;
  virtual void OnConnectionClosed() = 0;

  /// An answer began. `route` is the pattern that served it, such as /v1/models/{}; empty when the
  /// server itself refused.
  virtual void OnAnswered(absl::string_view route, int status) = 0;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_HTTP_OBSERVER_H_
