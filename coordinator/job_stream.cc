#include "coordinator/job_stream.h"

#include <utility>

namespace caravan {

void JobStream::AddToken(SampledToken token) {
  MutexLock lock(&mu_);
  pending_.tokens.push_back(token);
  changed_.SignalAll();
}

void JobStream::AddLogits(int64_t first_position, const std::vector<float>& logits) {
  MutexLock lock(&mu_);
  if (pending_.logits.empty()) pending_.first_logits_position = first_position;
  pending_.logits.insert(pending_.logits.end(), logits.begin(), logits.end());
  changed_.SignalAll();
}

void JobStream::Finish(v1::FinishReason reason) {
  MutexLock lock(&mu_);
  if (end_.has_value()) return;
  end_ = absl::OkStatus();
  pending_.finished = true;
  pending_.reason = reason;
  changed_.SignalAll();
}

void JobStream::Fail(absl::Status why) {
  MutexLock lock(&mu_);
  if (end_.has_value()) return;
  end_ = std::move(why);
  changed_.SignalAll();
}

absl::StatusOr<JobUpdate> JobStream::Next(absl::Duration timeout) {
  MutexLock lock(&mu_);
  bool timed_out = false;
  while (pending_.tokens.empty() && pending_.logits.empty() && !end_.has_value() && !timed_out) {
    timed_out = changed_.WaitWithTimeout(&mu_, timeout) && timeout < absl::InfiniteDuration();
  }
  // What was generated before a failure is read before the failure.
  if (pending_.tokens.empty() && pending_.logits.empty() && end_.has_value() && !end_->ok()) {
    return *end_;
  }
  JobUpdate next;
  next.finished = pending_.finished;
  next.reason = pending_.reason;
  std::swap(next, pending_);
  return next;
}

}  // namespace caravan
