#ifndef CARAVAN_TESTS_SUPPORT_EVENT_COUNTER_H_
#define CARAVAN_TESTS_SUPPORT_EVENT_COUNTER_H_

// Counts events of other threads for the test's, which waits for them.

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/mutex.h"

namespace caravan {

/// Thread-safe.
class EventCounter {
 public:
  void Add() {
    MutexLock lock(&mu_);
    ++count_;
    changed_.SignalAll();
  }
  /// Waits until it is `count` or more; false when it is not within a deadline far longer than any
  /// test needs.
  bool Reaches(int count) {
    MutexLock lock(&mu_);
    while (count_ < count) {
      if (changed_.WaitWithTimeout(&mu_, absl::Seconds(120))) return count_ >= count;
    }
    return true;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  int count_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_EVENT_COUNTER_H_
