#ifndef CARAVAN_WORKER_KV_PEER_CHANNEL_H_
#define CARAVAN_WORKER_KV_PEER_CHANNEL_H_

// Another worker's archive of KV blocks over gRPC.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "cluster/transport_security.h"
#include "worker/kv_peer.h"

namespace caravan {

struct KvPeerOptions {
  std::string address;       // HOST:PORT
  uint64_t incarnation = 0;  // whom to find there
  std::string name;          // for messages
  TransportSecurity security;
  // With certificates: who must answer. REQUIRES: set then.
  std::optional<Identity> identity;
};

/// Connects when first called.
std::unique_ptr<KvPeer> MakeKvPeerChannel(const KvPeerOptions& options);

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_PEER_CHANNEL_H_
