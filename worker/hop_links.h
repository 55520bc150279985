#ifndef CARAVAN_WORKER_HOP_LINKS_H_
#define CARAVAN_WORKER_HOP_LINKS_H_

// The links from card to card of one stage, and how its ends find one another when a plan is
// loaded:
//
//   this worker            coordinator            the one after
//      |--HopInvitation(id)---->|--JoinHop(id)---------->|
//      |<===================== joins ===================>|
//
// Each worker first joins its hop from the worker before, then invites to the one after: the first
// stage has none before, so there is always one that can go on, and both ends of a hop are at it
// when its deadline begins. This comes before the weights are read, so that a hop that cannot be
// had is told at once. One that need not go by NCCL is planned anew then, over TCP: the plan that
// failed of it ends, so neither end waits for the other or for what that takes the hop to be.

#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"
#include "base/bounded_queue.h"
#include "caravan/v1/cluster.pb.h"
#include "worker/card_link.h"

namespace caravan {

/// Null: activations come, or go, with their steps.
struct HopLinks {
  std::unique_ptr<CardLink> previous;
  std::unique_ptr<CardLink> next;

  bool any() const { return previous != nullptr || next != nullptr; }
};

struct HopLinksOptions {
  const CardTransport* transport = nullptr;  // null: this worker has none
  bool required = false;                     // a hop to another worker without a link is an error
  std::function<void(v1::WorkerReport)> report;     // to the coordinator
  BoundedQueue<v1::JoinHop>* invitation = nullptr;  // from the coordinator, of this plan
};

/// Makes the links that `order` calls for. Gives up, and closes the invitation, when `stop` is
/// requested. `unjoined`: where an error comes of a hop that could not be joined and needs no link,
/// which one it is; unspecified else.
/// Errors: InvalidArgument - a hop that has to have a link has none, or its ends do not fit
///         together; DeadlineExceeded - a neighbour did not come to a hop that both ends knew of
///         (an invitation to it is waited for until `stop`); as CardTransport::Join else. They name
///         the neighbour.
absl::StatusOr<HopLinks> JoinHops(const v1::LoadStage& order, const HopLinksOptions& options,
                                  const std::stop_token& stop, v1::HopEnd& unjoined);

}  // namespace caravan

#endif  // CARAVAN_WORKER_HOP_LINKS_H_
