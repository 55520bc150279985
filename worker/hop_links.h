#ifndef CARAVAN_WORKER_HOP_LINKS_H_
#define CARAVAN_WORKER_HOP_LINKS_H_

// The links from card to card of one stage, and how its ends find one another when a plan is
// loaded:
//
//   this worker            coordinator            the one before
//      |--HopInvitation(id)---->|--JoinHop(id)---------->|
//      |<===================== joins ===================>|
//
// Each worker first joins its hop from the worker before, then the one to the worker after: the
// first stage has none before, so there is always one that can go on. This comes before the weights
// are read, so that a hop that cannot be had is told at once.

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
/// requested.
/// Errors: InvalidArgument - a hop that has to have a link has none, or its ends do not fit
///         together; DeadlineExceeded - a neighbour did not come; as CardTransport::Join else. They
///         name the neighbour.
absl::StatusOr<HopLinks> JoinHops(const v1::LoadStage& order, const HopLinksOptions& options,
                                  const std::stop_token& stop);

}  // namespace caravan

#endif  // CARAVAN_WORKER_HOP_LINKS_H_
