#include "coordinator/job_stream.h"

#include <utility>

namespace caravan {
namespace {

template <typename T>
void MoveToEnd(std::vector<T>& from, std::vector<T>& to) {
  if (to.empty()) {
    to = std::move(from);
  } else {
    to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
  }
}

}  // namespace

void JobStream::Add(JobUpdate update) {
  std::function<void()> on_news;
  {
    MutexLock lock(&mu_);
    if (end_.has_value() || update.empty()) return;
    if (pending_.empty()) on_news = on_news_;
    if (pending_.logits.empty()) pending_.first_logits_position = update.first_logits_position;
    MoveToEnd(update.tokens, pending_.tokens);
    MoveToEnd(update.prompt_scores, pending_.prompt_scores);
    MoveToEnd(update.logits, pending_.logits);
    pending_.cached_prompt_tokens = update.cached_prompt_tokens;
    if (update.finished) {
      end_ = absl::OkStatus();
      pending_.finished = true;
      pending_.reason = update.reason;
    }
    changed_.SignalAll();
  }
  if (on_news != nullptr) on_news();
}

void JobStream::Fail(absl::Status why) {
  std::function<void()> on_news;
  {
    MutexLock lock(&mu_);
    if (end_.has_value()) return;
    if (pending_.empty()) on_news = on_news_;
    end_ = std::move(why);
    changed_.SignalAll();
  }
  if (on_news != nullptr) on_news();
}

void JobStream::SetListener(std::function<void()> on_news) {
  bool news = false;
  {
    MutexLock lock(&mu_);
    on_news_ = on_news;
    news = !pending_.empty() || end_.has_value();
  }
  if (news) on_news();
}

absl::StatusOr<JobUpdate> JobStream::Next(absl::Duration timeout) {
  MutexLock lock(&mu_);
  bool timed_out = timeout <= absl::ZeroDuration();  // which is no wait at all: pollers do so often
  while (pending_.empty() && !end_.has_value() && !timed_out) {
    timed_out = changed_.WaitWithTimeout(&mu_, timeout) && timeout < absl::InfiniteDuration();
  }
  // What was generated before a failure is read before the failure.
  if (pending_.empty() && end_.has_value() && !end_->ok()) return *end_;
  JobUpdate next;
  next.finished = pending_.finished;
  next.reason = pending_.reason;
  std::swap(next, pending_);
  return next;
}

}  // namespace caravan
