#ifndef CARAVAN_CLUSTER_KNOWN_BOXES_H_
#define CARAVAN_CLUSTER_KNOWN_BOXES_H_

// Parts and boxes that one need not own to ask about. Each figure's source is with it
// (Box::Part::sources): a data sheet or what was measured, and where neither is, that it is an
// estimate.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cluster/box.h"

namespace caravan {

template <class P>
struct KnownPart {
  std::string key;  // what it is called on command lines and in JSON: "nvme4"
  P part;
};

/// All of a kind: Box::Cpu, Memory, Disk, Card or Network.
template <class P>
const std::vector<KnownPart<P>>& KnownParts();

/// Errors: NotFound - there is no such part; names those that there are.
template <class P>
absl::StatusOr<P> FindPart(absl::string_view key);

/// What a slot of x4 gives a drive, and one of x16 a card, with the protocol's share taken off;
/// as good as no limit where the generation is not known (0).
double DriveSlotBytes(int pcie_generation);
double CardSlotBytes(int pcie_generation);

/// A part in a board's slots: no faster than those. Their sources say so.
Box::Disk InSlot(Box::Disk disk, const Box::Cpu& cpu);
Box::Card InSlot(Box::Card card, const Box::Cpu& cpu);

/// Boxes of such parts. Each has `key` as its name.
const std::vector<Box>& KnownBoxes();

/// Errors: NotFound - no box of this name; names those that there are.
absl::StatusOr<Box> FindBox(absl::string_view name);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_KNOWN_BOXES_H_
