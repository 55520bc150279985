#ifndef CARAVAN_WORKER_CARD_LINK_H_
#define CARAVAN_WORKER_CARD_LINK_H_

// How activations go from one worker's card to the next one's, beside the stream that carries their
// steps. Knows nothing of what does it: worker/nccl/nccl_transport.h, and fakes in tests.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace caravan {

/// One end of one hop: carries whole messages, in order, one way. Each Send meets the other end's
/// Receive of as many bytes.
///
/// Send, or Receive, is called by one thread at a time; Abort by any. There is no deadline, since
/// the other end may be computing for long: whoever learns that it is gone calls Abort.
/// Errors: Unavailable - the other end or the network is gone; Cancelled - after Abort; Internal -
///         the device failed. After an error every later call fails too.
class CardLink {
 public:
  virtual ~CardLink() = default;

  /// `data` of the card, [bytes], may change when this returns. REQUIRES: bytes > 0.
  virtual absl::Status Send(const std::byte* data, int64_t bytes) = 0;
  /// The bytes are there, for whatever the card does next, when this returns. REQUIRES: the same.
  virtual absl::Status Receive(std::byte* data, int64_t bytes) = 0;
  /// Calls under way return. Idempotent.
  virtual void Abort() = 0;
};

/// What makes the links of one worker's card. Thread-safe.
class CardTransport {
 public:
  virtual ~CardTransport() = default;

  /// Both ends of a link must have the same: "2.28.9".
  virtual std::string version() const = 0;
  /// Opaque; two ends that say the same cannot be joined.
  virtual std::string card() const = 0;

  /// By which the ends of one link find one another, both of which should then join.
  /// Errors: Internal; Unavailable - there is no network.
  virtual absl::StatusOr<std::string> NewLinkId() const = 0;

  struct JoinOptions {
    std::string link_id;  // from the NewLinkId of one end
    bool sends = false;   // else receives
    std::string name;     // for messages
    absl::Duration timeout;
    std::stop_token stop;
  };
  /// Waits for the other end; bytes have passed when this returns.
  /// Errors: Unavailable; DeadlineExceeded - it did not come in time; Cancelled - a stop was
  ///         requested; FailedPrecondition - the ends do not fit together; Internal.
  virtual absl::StatusOr<std::unique_ptr<CardLink>> Join(const JoinOptions& options) const = 0;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_CARD_LINK_H_
