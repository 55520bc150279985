#ifndef CARAVAN_CLUSTER_SENDER_GATE_H_
#define CARAVAN_CLUSTER_SENDER_GATE_H_

// Whose steps a stage, or the coordinator at the ring's end, takes: those of the one process that
// its plan puts before it.

#include <cstdint>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "base/mutex.h"

namespace caravan {

/// Who sends steps, as far as is known of it.
struct StepSender {
  uint64_t incarnation =
      0;                 // as it says; other than its neighbours and the coordinator nobody knows
  std::string identity;  // as its certificate says (ToString); empty: it has shown none
};

/// Thread-safe.
class SenderGate {
 public:
  /// From now on steps of the plan come from `sender`; of what is 0 or empty in it, from any. Said
  /// before anybody is told that steps of the plan may come. The newest few plans are known, as one
  /// may be made ready while another serves.
  void Expect(uint64_t plan_version, StepSender sender);

  /// Errors: PermissionDenied - the plan's steps come from somebody else; Aborted - nobody expects
  ///         steps of this plan here (any more).
  absl::Status Check(const StepSender& sender, uint64_t plan_version) const;

 private:
  mutable Mutex mu_;
  std::map<uint64_t, StepSender> expected_ ABSL_GUARDED_BY(mu_);  // by plan
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_SENDER_GATE_H_
