#include "cluster/silence_limit.h"

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "base/mutex.h"

namespace caravan {

struct SilenceLimit::Call {
  Mutex mu;  // held while `cancel` is called, so that the destructor waits for its end
  std::function<void()> cancel ABSL_GUARDED_BY(mu);  // null: too late
  bool passed ABSL_GUARDED_BY(mu) = false;
};

SilenceLimit::SilenceLimit(std::function<void()> cancel, absl::Duration limit)
    : call_(std::make_shared<Call>()) {
  {
    MutexLock lock(&call_->mu);
    call_->cancel = std::move(cancel);
  }
  alarm_.Set(absl::ToChronoTime(absl::Now() + limit), [call = call_](bool on_time) {
    MutexLock lock(&call->mu);
    if (!on_time || call->cancel == nullptr) return;
    call->passed = true;
    call->cancel();
  });
}

SilenceLimit::~SilenceLimit() {
  {
    MutexLock lock(&call_->mu);
    call_->cancel = nullptr;
  }
  alarm_.Cancel();
}

bool SilenceLimit::passed() const {
  MutexLock lock(&call_->mu);
  return call_->passed;
}

}  // namespace caravan
