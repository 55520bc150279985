#ifndef CARAVAN_COORDINATOR_SPLIT_BACKOFF_H_
#define CARAVAN_COORDINATOR_SPLIT_BACKOFF_H_

// A split that could not be prepared or loaded is not tried again for a while, which doubles each
// time that it fails again: what serves, or served before it, goes on meanwhile. Only the last that
// failed is remembered.

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "cluster/pipeline_plan.h"

namespace caravan {

/// Whether two plans put the same layers on the same workers.
bool SameSplit(const PipelinePlan& a, const PipelinePlan& b);

/// Not thread-safe.
class SplitBackoff {
 public:
  /// `clock` outlives the object.
  explicit SplitBackoff(const Clock* clock) : clock_(clock) {}

  /// The plan failed of `why`: its split is held for `delay`, if it is the second time in a row for
  /// twice as long, and so on, up to 64 times as long.
  void Failed(const PipelinePlan& plan, const absl::Status& why, absl::Duration delay);
  /// What failed once with this split did not fail now: it is forgotten.
  void Serves(const PipelinePlan& plan);

  /// Whether this plan is not to be tried yet.
  bool Holds(const PipelinePlan& plan) const;
  /// On the clock, when what failed last may be tried again, which may be over; nullopt: nothing
  /// failed.
  std::optional<absl::Duration> until() const;
  /// Why a split is held now; empty: none is.
  std::string why() const;

 private:
  struct Failure {
    PipelinePlan plan;
    int in_a_row = 0;
    absl::Duration until;  // on the clock
    std::string why;
  };

  const Clock* const clock_;
  std::optional<Failure> last_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_SPLIT_BACKOFF_H_
