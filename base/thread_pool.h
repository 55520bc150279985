#ifndef CARAVAN_BASE_THREAD_POOL_H_
#define CARAVAN_BASE_THREAD_POOL_H_

// The threads that share one kernel's work.
//
// A step of decoding is a chain of short parallel regions, and waking a sleeping thread takes a
// good part of one. So a thread that waits for the next region, or for the others to end one, first
// looks for kSpin before it sleeps: a pool in use seldom sleeps, an idle one burns that much once
// (docs/performance.md has what it gains). It does not look where the pool has more threads than
// the machine has cores, since it would take the core from the thread that it waits for; other
// pools and processes, and quotas of less than the machine, it does not know of.

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

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
  /// Whether `done` came true while spinning.
  bool Spin(absl::FunctionRef<bool()> done) const;

  const bool spins_;
  Mutex mu_;
  CondVar changed_;
  // One parallel region; written by ParallelFor while no helper is active.
  absl::FunctionRef<void(int64_t, int64_t)>* body_ = nullptr;
  int64_t count_ = 0;
  int64_t grain_ = 1;
  std::atomic<int64_t> next_{0};
  // Changed under mu_ where a sleeper waits for the change, read by spinning without it.
  std::atomic<uint64_t> generation_{0};  // of regions; a helper that sees a new one takes part
  std::atomic<int> active_{0};           // helpers that have not ended the region
  std::atomic<bool> stopping_{false};

  std::vector<std::thread> threads_;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_THREAD_POOL_H_
