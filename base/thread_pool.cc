#include "base/thread_pool.h"

#include <pthread.h>

#include <algorithm>

#include "base/check.h"

namespace caravan {

ThreadPool::ThreadPool(int num_threads) {
  CARAVAN_CHECK(num_threads >= 1);
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this] { Run(); });
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain,
                             absl::FunctionRef<void(int64_t, int64_t)> body) {
  CARAVAN_CHECK(grain >= 1);
  if (count <= 0) return;
  if (threads_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) {
      body(begin, std::min(count, begin + grain));
    }
    return;
  }
  body_ = &body;
  count_ = count;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  {
    MutexLock lock(&mu_);
    ++generation_;
    active_ = static_cast<int>(threads_.size());
    changed_.SignalAll();
  }
  TakeRanges();
  MutexLock lock(&mu_);
  while (active_ > 0) changed_.Wait(&mu_);
}

void ThreadPool::TakeRanges() {
  while (true) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= count_) return;
    (*body_)(begin, std::min(count_, begin + grain_));
  }
}

void ThreadPool::Run() {
  pthread_setname_np(pthread_self(), "kernel");
  uint64_t seen = 0;
  while (true) {
    {
      MutexLock lock(&mu_);
      while (generation_ == seen && !stopping_) changed_.Wait(&mu_);
      if (stopping_) return;
      seen = generation_;
    }
    TakeRanges();
    MutexLock lock(&mu_);
    if (--active_ == 0) changed_.SignalAll();
  }
}

}  // namespace caravan
