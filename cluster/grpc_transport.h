#ifndef CARAVAN_CLUSTER_GRPC_TRANSPORT_H_
#define CARAVAN_CLUSTER_GRPC_TRANSPORT_H_

// How every gRPC connection of the cluster is set up, on either end: message sizes, and the pings
// that find a machine which vanished without a word. Who may connect, and whether that is
// encrypted, cluster/transport_security.h decides.

#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/transport_security.h"
#include "grpcpp/channel.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"

namespace caravan {

/// Largest serialized Step: 8192 rows of 7168 floats are 224 MiB, and leave room for the rest.
inline constexpr int kMaxStepBytes = 256 << 20;

/// Largest other message that a channel takes in: the list of all tensors of a checkpoint has some
/// 10 MiB, most have a few KiB.
inline constexpr int kMaxReplyBytes = 64 << 20;

/// Silence after which an end asks whether the other still lives, and how long it waits for the
/// answer. A vanished machine is noticed within the sum.
inline constexpr absl::Duration kKeepaliveInterval = absl::Seconds(10);
inline constexpr absl::Duration kKeepaliveTimeout = absl::Seconds(5);

struct ChannelOptions {
  TransportSecurity security;
  std::optional<Identity> peer;  // with certificates: who must answer; none: any coordinator
  bool any_peer = false;         // anybody of the cluster may answer
  int max_receive_bytes = kMaxReplyBytes;  // a larger message ends its call, before there is memory
                                           // for it
};

/// A channel with a connection of its own to `address` (HOST:PORT), made when first used. Calls
/// that fail are not tried again, and proxies of the environment are not asked.
std::shared_ptr<grpc::Channel> MakeGrpcChannel(const std::string& address,
                                               const ChannelOptions& options = {});

/// The same without a certificate of this end's: `credentials` say whom it believes.
std::shared_ptr<grpc::Channel> MakeGrpcChannel(
    const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials,
    int max_receive_bytes);

/// What a server of the cluster sets before it is built.
void ConfigureGrpcServer(grpc::ServerBuilder& builder);

struct GrpcServer {
  std::unique_ptr<grpc::Server> server;  // serving
  int port = 0;                          // that it listens on
};

/// Serves `services`, which are borrowed, at HOST:PORT; port 0 takes a free one. With certificates
/// each call is subject to cluster/call_guard.h.
/// Errors: InvalidArgument - as CheckListen, or an address in use or not this machine's.
absl::StatusOr<GrpcServer> StartGrpcServer(const std::string& address,
                                           const std::vector<grpc::Service*>& services,
                                           const TransportSecurity& security = {});

/// Waits until the channel to `address` is connected, perhaps again.
/// Errors: DeadlineExceeded - nobody answered within `timeout`; as ExplainNoConnection - trying on
///         makes no sense; Cancelled - `stop` was requested. Each names the address.
absl::Status WaitForConnection(grpc::Channel& channel, const std::string& address,
                               const TransportSecurity& security, absl::Duration timeout,
                               const std::stop_token& stop);

/// Stops a server: calls under way have `grace` to end, then they are cancelled. Returns when every
/// handler has, so that what the services borrow may go.
void ShutDownGrpcServer(grpc::Server& server, absl::Duration grace);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_GRPC_TRANSPORT_H_
