#ifndef CARAVAN_COORDINATOR_HTTP_HTTP_LIMITS_H_
#define CARAVAN_COORDINATOR_HTTP_HTTP_LIMITS_H_

// What one client may cost. docs/api.md tells clients.

#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

namespace caravan {

struct HttpLimits {
  int64_t max_connections = 4096;  // further ones get 503
  size_t max_header_bytes = size_t{32} << 10;
  int64_t max_bodies_bytes = int64_t{512} << 20;  // of all requests that are being read together
  // From the first byte of a request (from the connection's start for the first) to the header's
  // end.
  absl::Duration header_timeout = absl::Seconds(10);
  // For a body: this, and a second for each kSlowestBodyBytesPerSecond of it.
  absl::Duration body_timeout = absl::Seconds(30);
  absl::Duration idle_timeout = absl::Seconds(75);   // between two requests
  absl::Duration write_timeout = absl::Seconds(30);  // without a byte taken by the client
  absl::Duration linger_timeout = absl::Seconds(2);  // for a refused client to read why
  absl::Duration ping_interval = absl::Seconds(15);  // a silent event stream gets a comment
  // A stream's writer is told to wait while more than this is unsent.
  size_t max_unsent_bytes = size_t{64} << 10;
};

inline constexpr int64_t kSlowestBodyBytesPerSecond = int64_t{64} << 10;

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_HTTP_LIMITS_H_
