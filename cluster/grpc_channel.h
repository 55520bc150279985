#ifndef CARAVAN_CLUSTER_GRPC_CHANNEL_H_
#define CARAVAN_CLUSTER_GRPC_CHANNEL_H_

// The hop over TCP: the sending end of a Pipeline.Flow stream. Flow control, keepalive and
// TCP_NODELAY are gRPC's, encryption is cluster/transport_security.h's.
//
//                 first FlowReply, right incarnation          the stream ends
//   (connecting) -----------------------------------> open ----------------------> broken
//        |                                              |                            |
//        | refused, wrong incarnation, time ran out     | Close                      | Close
//        v                                              v                            v
//   (an error)                                        closed <-----------------------'

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/activation_channel.h"
#include "cluster/transport_security.h"

namespace caravan {

struct GrpcChannelOptions {
  std::string address;                                 // HOST:PORT of the next hop
  uint64_t expected_incarnation = 0;                   // whom to find there
  absl::Duration connect_timeout = absl::Seconds(10);  // for connection and first reply together
  std::string name = "next hop";                       // for messages
  uint64_t own_incarnation = 0;                        // who sends; 0: it does not say
  TransportSecurity security;
  std::optional<Identity> expected_identity;  // with certificates; none: any coordinator
  std::stop_token stop;                       // gives up opening

  /// Called at most once, by a thread of gRPC's, when the open link breaks of itself: perhaps
  /// before OpenGrpcChannel has returned, never after Close has. It must not call Close, nor block.
  std::function<void(absl::Status)> on_broken;
};

/// Opens the stream, and returns once the far end has said who it is. The channel's errors name
/// options.name and address. Neither Send nor Close waits for a link that takes nothing any more:
/// once it is known to be lost, or closed, both return at once. After the far end ended the stream
/// or died, Send returns its status; besides what ActivationChannel says: Errors:
/// FailedPrecondition - a step_id went back; InvalidArgument - a step larger than
///         kMaxStepBytes, which ends the stream.
///
/// Errors of opening: Unavailable - nobody answers there, or not in time; Aborted - another
///         incarnation answers, or the far end refused; Unimplemented - no Caravan there;
///         Cancelled - a stop was requested.
absl::StatusOr<std::unique_ptr<ActivationChannel>> OpenGrpcChannel(
    const GrpcChannelOptions& options);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_GRPC_CHANNEL_H_
