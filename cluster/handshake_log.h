#ifndef CARAVAN_CLUSTER_HANDSHAKE_LOG_H_
#define CARAVAN_CLUSTER_HANDSHAKE_LOG_H_

namespace caravan {

/// From now on logs TLS handshakes of this process that fail, with the reason that OpenSSL gives:
/// gRPC tells that in its own log only. Does nothing where GRPC_VERBOSITY asks for that log.
/// Idempotent, thread-safe.
void LogFailedHandshakes();

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_HANDSHAKE_LOG_H_
