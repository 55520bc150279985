#ifndef CARAVAN_COORDINATOR_HOP_RULES_H_
#define CARAVAN_COORDINATOR_HOP_RULES_H_

// By which way the activations of a hop between two workers go: by NCCL, from card to card, or with
// the steps. A function of what both ends say of themselves when they join, and of which hops are
// known to have failed. docs/architecture.md, "Activations from card to card", says why.

#include <map>
#include <string>
#include <utility>

#include "caravan/v1/cluster.pb.h"
#include "cluster/membership.h"

namespace caravan {

/// Why nobody else can read what goes between two workers, though it is not encrypted; empty: that
/// is not known.
std::string WhyTrusted(const v1::Registration& a, const v1::Registration& b);

/// Not thread-safe.
class HopRules {
 public:
  /// The hop between `worker` and `neighbour`, whichever comes first, as the former is told.
  v1::Hop Make(const Member& worker, const Member& neighbour) const;

  /// These two could not be joined by NCCL: their hop goes over TCP, and says `why`, until one of
  /// them is lost. What was in the way mostly stays there, and a try may take minutes.
  void RememberUnjoined(WorkerId a, WorkerId b, std::string why);

  /// This worker is lost: with another life of it all is tried anew.
  void Forget(WorkerId worker);

 private:
  std::map<std::pair<WorkerId, WorkerId>, std::string> unjoined_;  // the lower id first
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HOP_RULES_H_
