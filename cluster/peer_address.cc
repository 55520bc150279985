#include "cluster/peer_address.h"

#include "base/status_macros.h"

namespace caravan {

absl::StatusOr<PeerAddress> PeerFromProto(const v1::Peer& peer) {
  PeerAddress from;
  from.name = peer.name();
  from.address = peer.address();
  from.incarnation = peer.incarnation();
  if (!peer.identity().empty()) {
    CARAVAN_ASSIGN_OR_RETURN(from.identity, ParseIdentity(peer.identity()));
  }
  return from;
}

std::shared_ptr<grpc::Channel> MakeGrpcChannel(const PeerAddress& peer,
                                               const TransportSecurity& security,
                                               int max_receive_bytes) {
  ChannelOptions channel;
  channel.security = security;
  channel.peer = peer.identity;
  channel.max_receive_bytes = max_receive_bytes;
  return MakeGrpcChannel(peer.address, channel);
}

}  // namespace caravan
