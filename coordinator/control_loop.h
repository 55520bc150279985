#ifndef CARAVAN_COORDINATOR_CONTROL_LOOP_H_
#define CARAVAN_COORDINATOR_CONTROL_LOOP_H_

// The one thread that the cluster controller lives on: what others want of it is posted here.

#include <functional>
#include <future>
#include <memory>
#include <utility>

#include "absl/time/time.h"
#include "base/bounded_queue.h"
#include "base/named_thread.h"

namespace caravan {

/// Thread-safe. The destructor drops what is queued and joins.
class ControlLoop {
 public:
  /// Calls `tick` on the loop's thread when nothing was posted for `tick_interval`, and when all
  /// that was posted has run.
  ControlLoop(absl::Duration tick_interval, std::function<void()> tick);
  ~ControlLoop();

  /// Runs `task` on the loop's thread, in order of posting. Returns false when the loop is ending.
  bool Post(std::function<void()> task) { return tasks_.Push(std::move(task)); }

  /// Runs `task` there and waits for what it returns; `if_ending` when the loop is ending.
  /// REQUIRES: not called by the loop's thread.
  template <typename T>
  T Call(std::function<T()> task, T if_ending) {
    auto promise = std::make_shared<std::promise<T>>();
    std::future<T> result = promise->get_future();
    if (!Post([promise, task = std::move(task)] { promise->set_value(task()); })) return if_ending;
    // A task that is dropped unrun takes its promise with it.
    promise.reset();
    try {
      return result.get();
    } catch (const std::future_error&) {
      return if_ending;
    }
  }

  /// Nothing runs any more once this returns. Idempotent.
  void Stop();

 private:
  void Run();

  const absl::Duration tick_interval_;
  const std::function<void()> tick_;
  BoundedQueue<std::function<void()>> tasks_;
  NamedThread thread_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_CONTROL_LOOP_H_
