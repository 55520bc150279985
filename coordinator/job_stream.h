#ifndef CARAVAN_COORDINATOR_JOB_STREAM_H_
#define CARAVAN_COORDINATOR_JOB_STREAM_H_

// Carries what a job yields from the driver to the job's reader. Holds at most the whole reply:
// max_new_tokens tokens, or the logits of the whole prompt.

#include <cstdint>
#include <optional>
#include <vector>

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
  void AddToken(SampledToken token);
  /// `logits` [rows, vocab_size] continue where the last call's ended.
  void AddLogits(int64_t first_position, const std::vector<float>& logits);
  /// The end, well or badly. The first end stays.
  void Finish(v1::FinishReason reason);
  /// REQUIRES: !why.ok().
  void Fail(absl::Status why);

  /// Waits until there is something to read, and takes it; an update with nothing in it when
  /// `timeout` passes first. At the end: `finished`, or the error, again and again.
  absl::StatusOr<JobUpdate> Next(absl::Duration timeout);

 private:
  Mutex mu_;
  CondVar changed_;
  JobUpdate pending_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_JOB_STREAM_H_
