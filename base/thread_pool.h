#ifndef CARAVAN_BASE_THREAD_POOL_H_
#define CARAVAN_BASE_THREAD_POOL_H_

// The threads that share one kernel's work.

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "base/mutex.h"

namespace caravan {

/// ParallelFor is called by one thread at a time; everything else is private.
class ThreadPool {
 public:
  /// `num_threads` includes the caller of ParallelFor. REQUIRES: num_threads >= 1.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  /// Calls body(begin, end) for disjoint half-open ranges that cover [0, count), each of `grain`
  /// items but the last; returns when all are done. Which thread takes which range is not fixed, so
  /// `body` must not let that show in its results.
  /// REQUIRES: grain >= 1.
  void ParallelFor(int64_t count, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> body);

 private:
  void Run();
  void TakeRanges();

  Mutex mu_;
  CondVar changed_;
  // One parallel region; written by ParallelFor while no helper is active.
  absl::FunctionRef<void(int64_t, int64_t)>* body_ = nullptr;
  int64_t count_ = 0;
  int64_t grain_ = 1;
  std::atomic<int64_t> next_{0};
  uint64_t generation_ ABSL_GUARDED_BY(mu_) = 0;
  int active_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::vector<std::thread> threads_;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_THREAD_POOL_H_
