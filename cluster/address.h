#ifndef CARAVAN_CLUSTER_ADDRESS_H_
#define CARAVAN_CLUSTER_ADDRESS_H_

// Where a process of the cluster is reached: HOST:PORT.

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// `min_port` is 1 for an address to dial, 0 where "any free port" can be meant.
/// Errors: InvalidArgument - not HOST:PORT with a port from min_port to 65535. IPv6 hosts are in
///         brackets.
absl::Status CheckAddress(absl::string_view address, int min_port = 1);

/// Whether HOST, HOST:PORT or SCHEME://HOST:PORT names this machine's loopback: localhost,
/// 127.0.0.0/8 or ::1.
bool IsLoopbackName(absl::string_view name);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_ADDRESS_H_
