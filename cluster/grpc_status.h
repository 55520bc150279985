#ifndef CARAVAN_CLUSTER_GRPC_STATUS_H_
#define CARAVAN_CLUSTER_GRPC_STATUS_H_

// absl::Status on the wire and back. The codes are the same numbers on both sides.

#include <cstddef>

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace caravan {

/// What ToGrpcStatus keeps of a message. It travels percent-encoded in a trailer, and a peer drops
/// the whole status for trailers past 8 KiB.
inline constexpr size_t kMaxStatusMessageBytes = 2048;

grpc::Status ToGrpcStatus(const absl::Status& status);
/// An error without a message, but for Cancelled, is Unavailable: what gRPC makes of a process that
/// was killed in the middle of a call can be of any code.
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_GRPC_STATUS_H_
