#include "coordinator/openai/request_worker.h"

#include <utility>

namespace caravan {
namespace {

// Each holds a request's body.
constexpr size_t kMaxTasks = 64;

}  // namespace

bool RequestWorker::Post(std::function<void()> task) {
  MutexLock lock(&mu_);
  if (stopping_ || tasks_.size() >= kMaxTasks) return false;
  tasks_.push_back(std::move(task));
  changed_.SignalAll();
  return true;
}

bool RequestWorker::PostMore(std::function<void()> task) {
  MutexLock lock(&mu_);
  if (stopping_) return false;
  tasks_.push_back(std::move(task));
  changed_.SignalAll();
  return true;
}

void RequestWorker::Stop() {
  std::deque<std::function<void()>> dropped;  // outside the lock: they own a lot
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    dropped.swap(tasks_);
    changed_.SignalAll();
  }
  thread_.Join();
}

void RequestWorker::Run() {
  while (true) {
    std::function<void()> task;
    {
      MutexLock lock(&mu_);
      while (tasks_.empty() && !stopping_) changed_.Wait(&mu_);
      if (stopping_) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace caravan
