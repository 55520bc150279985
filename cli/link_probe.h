#ifndef CARAVAN_CLI_LINK_PROBE_H_
#define CARAVAN_CLI_LINK_PROBE_H_

// What a hop from this box to another gets from the network between them: caravan probe link. It is
// measured as hops use it: messages on streams of gRPC, over one connection that is set up as every
// other of the cluster. Far end: cluster/probe_service.h.

#include <cstdint>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/box.h"
#include "cluster/transport_security.h"
#include "nlohmann/json.hpp"

namespace caravan {

struct LinkProbeOptions {
  std::string address;         // HOST:PORT of a coordinator, a worker or caravan probe listen
  TransportSecurity security;  // whoever of the cluster answers
  // What a hop carries of a token: R1's hidden_size floats. At most kMostEchoBytes.
  int64_t activation_bytes = int64_t{7168} * 4;
  absl::Duration duration =
      absl::Seconds(2);  // of each of four measurements; at most kLongestCount
  absl::Duration connect_timeout = absl::Seconds(10);
  std::stop_token stop;
};

struct LinkProbe {
  /// Of messages there and back, one at a time. Seconds.
  struct RoundTrips {
    int64_t bytes = 0;  // of the message, each way
    int64_t count = 0;
    double median_seconds = 0;
    double p99_seconds = 0;
  };
  std::string address;
  RoundTrips small;
  RoundTrips activations;
  double to_bytes_per_second = 0;  // of payload, from here to the far end
  double from_bytes_per_second = 0;
};

/// Takes about four times options.duration, on a slow link a few seconds more.
/// Errors: InvalidArgument - no HOST:PORT; Unavailable - nobody answers there, or not in time;
///         Unimplemented - who answers is no Caravan, or one that cannot be probed;
///         ResourceExhausted - it is being probed by another; DeadlineExceeded - the link is too
///         slow to measure, or the far end vanished; Cancelled - stopped. Each but the first and
///         the last names the address.
absl::StatusOr<LinkProbe> ProbeLink(const LinkProbeOptions& options);

/// What plans are made with: half of a small message's way there and back, and the slower way's
/// rate.
Box::Network NetworkOf(const LinkProbe& probe);

std::string LinkProbeTable(const LinkProbe& probe);
nlohmann::json LinkProbeJson(const LinkProbe& probe);

}  // namespace caravan

#endif  // CARAVAN_CLI_LINK_PROBE_H_
