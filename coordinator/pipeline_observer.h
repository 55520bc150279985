#ifndef CARAVAN_COORDINATOR_PIPELINE_OBSERVER_H_
#define CARAVAN_COORDINATOR_PIPELINE_OBSERVER_H_

// Hears from the pipeline driver what a counter cannot tell afterwards: how long things took, and
// how jobs ended. What can be counted is in PipelineStats.

#include <cstdint>

#include "absl/time/time.h"
#include "coordinator/job.h"

namespace caravan {

enum class JobOutcome {
  kFinished,   // with a FinishReason
  kCancelled,  // by its reader, by Cancel, or because the reader went away
  kFailed,     // anything else
};

/// Called by any of the driver's threads, several at a time; without a lock of the driver's. Must
/// not block and must not call the driver.
class PipelineObserver {
 public:
  virtual ~PipelineObserver() = default;

  /// The first token of a job came home, `since_submit` after Submit. Once a job, at most.
  virtual void OnFirstToken(JobPriority priority, absl::Duration since_submit) = 0;

  /// Another token of a running job came home, `gap` after the one before it. Tokens that come
  /// home together (a draft that held) are as many calls, all but the first with a gap of zero.
  virtual void OnTokenGap(JobPriority priority, absl::Duration gap) = 0;

  /// A job left the driver. Once for every job that Submit took.
  virtual void OnJobEnded(JobPriority priority, JobOutcome outcome,
                          absl::Duration since_submit) = 0;

  /// A step of `rows` tokens came home, `round_trip` after it was sent.
  virtual void OnStepReturned(int64_t rows, absl::Duration round_trip) = 0;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_PIPELINE_OBSERVER_H_
