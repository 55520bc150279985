#ifndef CARAVAN_CLI_OFFLOAD_BOUNDS_H_
#define CARAVAN_CLI_OFFLOAD_BOUNDS_H_

// How fast a model whose experts lie on a disk could run at best: what a measured run is held
// against. docs/performance.md ("Models larger than memory") explains the bounds.

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "cli/visit_meter.h"

namespace caravan {

/// What one stage did in a run.
struct StageRun {
  absl::Duration busy;              // in steps
  std::vector<ExpertVisit> visits;  // of whole steps, in order
  int num_layers = 0;               // with experts: a step's visits
  int64_t slots = 0;                // experts that its memory holds
};

struct OffloadRun {
  std::vector<StageRun> stages;
  bool stages_overlap = false;  // several steps are in flight
  int64_t expert_bytes = 0;     // of each
};

/// The least time that the run could have taken.
struct OffloadBounds {
  /// Layer after layer, each of which reads as much as it did, at the disk's rate, and computes
  /// meanwhile: what is computed between visits is not overlapped. Nothing is read ahead.
  absl::Duration in_turn;
  /// Of all that the run's steps touched, all is read at the disk's rate but what memory may hold
  /// from one step to the next.
  absl::Duration disk;
  /// All that was computed, by the stage that has most of it.
  absl::Duration compute;

  /// Where disk and cores never wait for each other.
  absl::Duration bulk() const { return disk > compute ? disk : compute; }
};

/// REQUIRES: bytes_per_s > 0; a stage's visits are a multiple of its layers.
OffloadBounds ComputeOffloadBounds(const OffloadRun& run, double bytes_per_s);

}  // namespace caravan

#endif  // CARAVAN_CLI_OFFLOAD_BOUNDS_H_
