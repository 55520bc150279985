#ifndef CARAVAN_CLUSTER_PEER_ADDRESS_H_
#define CARAVAN_CLUSTER_PEER_ADDRESS_H_

// Where another process of the cluster serves, and who must answer there.

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/grpc_transport.h"
#include "cluster/identity.h"
#include "cluster/transport_security.h"

namespace caravan {

struct PeerAddress {
  std::string name;                  // for messages
  std::string address;               // HOST:PORT
  uint64_t incarnation = 0;          // whom to find there
  std::optional<Identity> identity;  // with certificates: who must answer; none: a coordinator
};

/// Errors: InvalidArgument - as ParseIdentity.
absl::StatusOr<PeerAddress> PeerFromProto(const v1::Peer& peer);

/// As the other MakeGrpcChannel; that the incarnation is right is for calls to find out.
std::shared_ptr<grpc::Channel> MakeGrpcChannel(const PeerAddress& peer,
                                               const TransportSecurity& security,
                                               int max_receive_bytes = kMaxReplyBytes);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_PEER_ADDRESS_H_
