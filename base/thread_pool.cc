#include "base/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "base/check.h"

namespace caravan {

namespace {

// About what a wake-up costs: waiting at most doubles it, and gaps between regions are mostly
// shorter (a norm, the choice of experts).
constexpr std::chrono::microseconds kSpin{40};

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads)
    : spins_(num_threads <= static_cast<int>(std::thread::hardware_concurrency())) {
  CARAVAN_CHECK(num_threads >= 1);
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this] { Run(); });
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(&mu_);
    stopping_.store(true);
    changed_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

bool ThreadPool::Spin(absl::FunctionRef<bool()> done) const {
  if (!spins_) return done();
  constexpr int kLooksBetweenClocks = 32;
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kLooksBetweenClocks; ++i) {
      if (done()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
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
    active_.store(static_cast<int>(threads_.size()));
    generation_.fetch_add(1);  // after all that a helper reads
    changed_.SignalAll();
  }
  TakeRanges();
  if (Spin([this] { return active_.load() == 0; })) return;
  MutexLock lock(&mu_);
  while (active_.load() > 0) changed_.Wait(&mu_);
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
    const auto changed = [&] { return generation_.load() != seen || stopping_.load(); };
    if (!Spin(changed)) {
      MutexLock lock(&mu_);
      while (!changed()) changed_.Wait(&mu_);
    }
    if (stopping_.load()) return;
    seen = generation_.load();
    TakeRanges();
    if (active_.fetch_sub(1) == 1) {
      MutexLock lock(&mu_);  // so that the caller is awake or waits already
      changed_.SignalAll();
    }
  }
}

}  // namespace caravan
