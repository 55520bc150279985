#ifndef CARAVAN_BASE_NAMED_THREAD_H_
#define CARAVAN_BASE_NAMED_THREAD_H_

// A thread that debuggers and top show by name, and that several threads may wait for.

#include <pthread.h>

#include <functional>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"

namespace caravan {

/// Thread-safe. The destructor joins.
class NamedThread {
 public:
  /// Linux shows the first 15 bytes of `name`.
  NamedThread(const std::string& name, std::function<void()> body)
      : thread_([name = name.substr(0, 15), body = std::move(body)] {
          ::pthread_setname_np(::pthread_self(), name.c_str());
          body();
        }) {}
  ~NamedThread() { Join(); }
  NamedThread(const NamedThread&) = delete;
  NamedThread& operator=(const NamedThread&) = delete;

  /// Returns when the body has returned. Idempotent. REQUIRES: not called by the body.
  void Join() {
    MutexLock lock(&mu_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  Mutex mu_;  // held while joining: later callers wait for the same end
  std::thread thread_ ABSL_GUARDED_BY(mu_);
};

/// Has the calling thread, and those that it starts from now on, get little of a core that another
/// thread wants.
void YieldToOthers();

}  // namespace caravan

#endif  // CARAVAN_BASE_NAMED_THREAD_H_
