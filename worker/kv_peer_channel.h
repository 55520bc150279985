#ifndef CARAVAN_WORKER_KV_PEER_CHANNEL_H_
#define CARAVAN_WORKER_KV_PEER_CHANNEL_H_

// Another worker's archive of KV blocks over gRPC.

#include <memory>

#include "cluster/peer_address.h"
#include "cluster/transport_security.h"
#include "worker/kv_peer.h"

namespace caravan {

struct KvPeerOptions {
  PeerAddress peer;  // REQUIRES: with certificates, its identity is set
  TransportSecurity security;
};

/// Connects when first called.
std::unique_ptr<KvPeer> MakeKvPeerChannel(const KvPeerOptions& options);

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_PEER_CHANNEL_H_
