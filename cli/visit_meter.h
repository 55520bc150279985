#ifndef CARAVAN_CLI_VISIT_METER_H_
#define CARAVAN_CLI_VISIT_METER_H_

// What each visit of a layer's experts takes: where a stage's time goes when experts come from a
// disk.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "cli/read_meter.h"
#include "kernels/backend.h"

namespace caravan {

/// From the end of the Route that chose its experts to that of RoutedExperts.
struct ExpertVisit {
  int64_t touched = 0;     // experts that any row chose
  int64_t read_bytes = 0;  // of reads that ended within it
  absl::Duration waited;   // for experts
  absl::Duration compute;  // the rest: of the shared experts and the routed ones
};

/// Thread-safe.
class VisitLog {
 public:
  void Add(const ExpertVisit& visit);
  /// All since the last call, in order.
  std::vector<ExpertVisit> Take();

 private:
  Mutex mu_;
  std::vector<ExpertVisit> visits_ ABSL_GUARDED_BY(mu_);
};

/// `backend`, whose visits go to `log`. A Route whose choices are hints for reads alone, not what
/// RoutedExperts is then given, begins no visit. `reads` has those of the stage; both outlive the
/// result.
std::unique_ptr<Backend> MakeVisitMeter(std::unique_ptr<Backend> backend, const ReadMeter* reads,
                                        VisitLog* log);

}  // namespace caravan

#endif  // CARAVAN_CLI_VISIT_METER_H_
