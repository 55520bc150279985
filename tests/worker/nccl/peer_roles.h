#ifndef CARAVAN_TESTS_WORKER_NCCL_PEER_ROLES_H_
#define CARAVAN_TESTS_WORKER_NCCL_PEER_ROLES_H_

// What the other process of a test does: rank 1 of 2, on the first card.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace caravan {

enum class PeerRole {
  kExchange,  // sends PeerValues(1, kPeerValues), expects PeerValues(0, kPeerValues); both at once
  kEcho,      // sends back what it gets, kEchoRounds messages of `bytes`
  kSend,      // messages of `bytes` until it is killed
  kReceive,   // the same
  kIdle,      // joins, and does nothing until it is killed
};

/// A chunk of 512 rows of DeepSeek-R1's hidden states.
inline constexpr int64_t kPeerValues = 7168 * 512;
inline constexpr int kEchoRounds = 20;

/// As the bits of floats; any bits, NaNs among them.
std::vector<uint32_t> PeerValues(int rank, int64_t count);

/// Plays the role; `unique_id` in hexadecimal. Errors: whatever failed; DataLoss - other values
/// came than were sent.
absl::Status PlayPeer(PeerRole role, const std::string& unique_id, int64_t bytes);

}  // namespace caravan

#endif  // CARAVAN_TESTS_WORKER_NCCL_PEER_ROLES_H_
