#ifndef CARAVAN_BASE_BOUNDED_QUEUE_H_
#define CARAVAN_BASE_BOUNDED_QUEUE_H_

// How work passes between threads: first in, first out, with a bound, and a way to end.

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"

namespace caravan {

/// Thread-safe.
template <typename T>
class BoundedQueue {
 public:
  /// REQUIRES: capacity >= 1, in items.
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  /// Waits for room. Returns false, and drops `item`, once the queue is closed.
  bool Push(T item) {
    MutexLock lock(&mu_);
    while (!closed_ && items_.size() >= capacity_) changed_.Wait(&mu_);
    if (closed_) return false;
    items_.push_back(std::move(item));
    changed_.SignalAll();
    return true;
  }

  /// As Push, but where there is no room it drops `item` and returns false too.
  bool TryPush(T item) {
    MutexLock lock(&mu_);
    if (closed_ || items_.size() >= capacity_) return false;
    items_.push_back(std::move(item));
    changed_.SignalAll();
    return true;
  }

  /// Waits for an item. Returns nullopt once the queue is closed and empty.
  std::optional<T> Pop() { return PopWithTimeout(absl::InfiniteDuration()); }

  /// As Pop, but also returns nullopt when `timeout` passes.
  std::optional<T> PopWithTimeout(absl::Duration timeout) {
    // A deadline: a waiter that wakes to find the item taken must not start its time anew.
    const absl::Duration deadline = SteadyClock().Now() + timeout;
    MutexLock lock(&mu_);
    while (items_.empty() && !closed_) {
      const absl::Duration left = deadline - SteadyClock().Now();
      if (left <= absl::ZeroDuration()) break;
      changed_.WaitWithTimeout(&mu_, left);
    }
    if (items_.empty()) return std::nullopt;
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    changed_.SignalAll();
    return item;
  }

  /// No item enters any more; what is inside can still be taken. Idempotent.
  void Close() {
    MutexLock lock(&mu_);
    closed_ = true;
    changed_.SignalAll();
  }

  bool closed() const {
    MutexLock lock(&mu_);
    return closed_;
  }

 private:
  const size_t capacity_;
  mutable Mutex mu_;
  CondVar changed_;
  std::deque<T> items_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_BOUNDED_QUEUE_H_
