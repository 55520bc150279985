#ifndef CARAVAN_WORKER_KV_PEER_H_
#define CARAVAN_WORKER_KV_PEER_H_

// Another worker's archive of KV blocks, as a stage uses it: an interface, so that tests have one
// without a network (worker/kv_peer_channel.h is the real one).

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "cluster/kv_block_name.h"
#include "worker/kv_block_store.h"
#include "worker/kv_format.h"

namespace caravan {

/// Names that one Offer may have, and parts that one Get may.
inline constexpr size_t kMostKvParts = 256;

/// What the layers of one part may take on the wire: under kMaxReplyBytes, and 300 layers of R1 in
/// f32.
inline constexpr int64_t kMostKvPartBytes = int64_t{48} << 20;

/// What a call that carries so many bytes may take: long enough for a slow link, short beside
/// computing it all anew.
inline absl::Duration KvCallTimeout(int64_t bytes) {
  constexpr double kLeastBytesPerS = 4e6;
  return absl::Seconds(5) + absl::Seconds(static_cast<double>(bytes) / kLeastBytesPerS);
}

/// Thread-safe. Every call ends within its timeout. Errors of all: Unavailable, DeadlineExceeded -
/// nobody answers; Aborted - another process does; Cancelled - after Cancel; Unauthenticated,
/// PermissionDenied.
class KvPeer {
 public:
  virtual ~KvPeer() = default;

  /// For messages: "worker 2 (box-b)".
  virtual const std::string& name() const = 0;
  /// Of the process that it is.
  virtual uint64_t incarnation() const = 0;

  /// Parts that it has of these layers, the least recently used first, at most kMostArchivedNames.
  /// Errors: DataLoss - it says what cannot be.
  virtual absl::StatusOr<std::vector<ListedKvPart>> List(const KvFormat& format,
                                                         const LayerRange& layers,
                                                         absl::Duration timeout) = 0;

  /// Hands over those of `wanted` that it has, each one whole and with the hashes that it should
  /// have. REQUIRES: at most kMostKvParts.
  /// Errors: DataLoss - it sends what was not asked for or is broken; those of `take`.
  using Take =
      absl::FunctionRef<absl::Status(const KvBlockPart& part, absl::Span<const std::byte> layers)>;
  virtual absl::Status Get(const KvFormat& format, absl::Span<const KvBlockPart> wanted,
                           absl::Duration timeout, Take take) = 0;

  /// Which of these it lacks, wholly or in part; the others count as used there.
  /// REQUIRES: at most kMostKvParts.
  virtual absl::StatusOr<std::vector<KvBlockName>> Offer(const KvFormat& format,
                                                         const LayerRange& layers,
                                                         absl::Span<const KvBlockName> names,
                                                         absl::Duration timeout) = 0;

  /// Errors: InvalidArgument - more than kMostKvPartBytes or than it has room for;
  ///         ResourceExhausted - its disk is full; DataLoss - it fails.
  virtual absl::Status Put(const KvFormat& format, const KvBlockPart& part,
                           absl::Span<const std::byte> layers, absl::Duration timeout) = 0;

  /// Ends all calls, those of later too.
  virtual void Cancel() = 0;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_PEER_H_
