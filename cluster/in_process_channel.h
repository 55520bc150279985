#ifndef CARAVAN_CLUSTER_IN_PROCESS_CHANNEL_H_
#define CARAVAN_CLUSTER_IN_PROCESS_CHANNEL_H_

// The hop between two ends of one process: a bounded queue and the thread that empties it.

#include <cstddef>
#include <memory>

#include "cluster/activation_channel.h"

namespace caravan {

/// Send waits while `capacity` steps are queued. The channel's own thread hands them to `receiver`;
/// an error of its closes the channel, and every later Send returns that error.
///
/// Close (and the destructor) drops what is queued and waits for the receiver to return from the
/// step that it has: a receiver that blocks must be released by its owner first. It must not call
/// Close itself.
/// REQUIRES: capacity >= 1, in steps.
std::unique_ptr<ActivationChannel> MakeInProcessChannel(StepReceiver receiver, size_t capacity);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_IN_PROCESS_CHANNEL_H_
