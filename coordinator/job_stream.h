#ifndef CARAVAN_COORDINATOR_JOB_STREAM_H_
#define CARAVAN_COORDINATOR_JOB_STREAM_H_

// Carries what a job yields from the driver to the job's reader. Holds at most the whole reply:
// max_new_tokens tokens, or the logits of the whole prompt.

#include <functional>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "coordinator/job.h"

namespace caravan {

/// Thread-safe. One writer, one reader.
class JobStream {
 public:
  /// Everything in `update` is added; with `finished` this is the end.
  void Add(JobUpdate update);
  /// The end, badly; the first end stays. REQUIRES: !why.ok().
  void Fail(absl::Status why);

  /// Waits until there is something to read, and takes it; an update with nothing in it when
  /// `timeout` passes first. At the end: `finished`, or the error, again and again.
  absl::StatusOr<JobUpdate> Next(absl::Duration timeout);

  /// `on_news` is called whenever there is something to read where there was nothing, at once if
  /// there is now: by the writer's thread, without a lock; it must not block. Once only.
  void SetListener(std::function<void()> on_news);

 private:
  Mutex mu_;
  CondVar changed_;
  JobUpdate pending_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);
  std::function<void()> on_news_ ABSL_GUARDED_BY(mu_);
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_JOB_STREAM_H_
