#ifndef CARAVAN_COORDINATOR_OPENAI_REQUEST_WORKER_H_
#define CARAVAN_COORDINATOR_OPENAI_REQUEST_WORKER_H_

// A thread for requests that take long to read, so that the streams' threads never wait for one.

#include <cstddef>
#include <deque>
#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "base/named_thread.h"

namespace caravan {

/// Thread-safe. The destructor drops what waits.
class RequestWorker {
 public:
  /// `name` is the thread's.
  explicit RequestWorker(const std::string& name = "http-requests")
      : thread_(name, [this] { Run(); }) {}
  ~RequestWorker() { Stop(); }

  /// Runs `task` soon, in order. False: too many wait, or it was stopped.
  bool Post(std::function<void()> task);

  /// As Post, for the next part of a task that was taken before: never too many.
  bool PostMore(std::function<void()> task);

  /// Idempotent.
  void Stop();

 private:
  void Run();

  Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  NamedThread thread_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_REQUEST_WORKER_H_
