#ifndef CARAVAN_CLUSTER_ACTIVATION_CHANNEL_H_
#define CARAVAN_CLUSTER_ACTIVATION_CHANNEL_H_

// One hop of the ring that steps travel: the sending end.
// Implementations: InProcessChannel (a queue), GrpcChannel (a Pipeline.Flow stream over TCP).

#include <functional>

#include "absl/status/status.h"
#include "caravan/v1/pipeline.pb.h"

namespace caravan {

/// Where a process takes in the steps that reach it. Called by the channel's threads, one step at a
/// time for each stream; may block, which holds the sender back.
/// Errors: Aborted - not a step of the present plan; FailedPrecondition - step_id went back;
///         Unavailable - leaving. An error ends the stream that brought the step.
using StepReceiver = std::function<absl::Status(v1::Step step)>;

/// Send is called by one thread at a time; Close by any.
class ActivationChannel {
 public:
  virtual ~ActivationChannel() = default;

  /// Hands the step to the next hop; returns when it is on its way, not when it has arrived. Steps
  /// arrive whole, in order, once, or not at all.
  /// Errors: Unavailable - the link or its far end is gone; Aborted - the far end says that the
  /// plan
  ///         is over; Cancelled - after Close. After an error every later Send fails too.
  virtual absl::Status Send(v1::Step step) = 0;

  /// Ends the link; a Send that waits returns. Idempotent.
  virtual void Close() = 0;
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_ACTIVATION_CHANNEL_H_
