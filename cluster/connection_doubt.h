#ifndef CARAVAN_CLUSTER_CONNECTION_DOUBT_H_
#define CARAVAN_CLUSTER_CONNECTION_DOUBT_H_

// Why a connection does not come about. gRPC says no more than that it has none; one more try by
// hand, up to TLS's handshake, tells whether somebody is there who will never be talked to.

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cluster/transport_security.h"

namespace caravan {

/// OK where trying on makes sense: nobody answers (yet), or nothing is wrong. Takes `timeout` twice
/// at most. Thread-safe.
/// Errors: FailedPrecondition - a server with certificates answers a caller without, or the other
///         way round; Unauthenticated - one end does not take the other's certificate, or the
///         caller's files are not what they were. That may pass, while certificates are exchanged.
absl::Status ExplainNoConnection(const std::string& address, const TransportSecurity& security,
                                 absl::Duration timeout);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_CONNECTION_DOUBT_H_
