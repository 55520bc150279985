#include "base/io/thread_read_queue.h"

#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <optional>
#include <system_error>

#include "absl/memory/memory.h"

namespace caravan {

absl::StatusOr<std::unique_ptr<ReadQueue>> ThreadReadQueue::Create(const Options& options) {
  auto queue = absl::WrapUnique(new ThreadReadQueue(options));
  try {
    for (int i = 0; i < options.depth; ++i) {
      queue->threads_.push_back(
          std::make_unique<NamedThread>("read-queue", [q = queue.get()] { q->Run(); }));
    }
  } catch (const std::system_error& error) {
    // Fewer read too.
    if (queue->threads_.empty()) return absl::ResourceExhaustedError(error.what());
  }
  return queue;
}

ThreadReadQueue::~ThreadReadQueue() {
  Stop();
  threads_.clear();
}

void ThreadReadQueue::Run() {
  std::vector<ReadSchedule::Ended> ended;
  while (true) {
    std::optional<ReadSchedule::Piece> piece;
    {
      MutexLock lock(&mu_);
      while (!schedule_.Ready() && !(stopped_ && schedule_.Idle())) changed_.Wait(&mu_);
      schedule_.TakeEnded(ended);
      if (ended.empty()) piece = schedule_.Begin();
      // While this thread is with the callbacks, another begins what there is room for.
      if (!ended.empty() && schedule_.Ready()) changed_.SignalAll();
    }
    if (ended.empty() && !piece.has_value()) break;
    Tell(ended);
    if (!piece.has_value()) continue;
    const ssize_t count =
        ::pread(piece->file->fd(), piece->out.data(), piece->out.size(), piece->offset);
    const int64_t result = count >= 0 ? count : -errno;
    MutexLock lock(&mu_);
    schedule_.Finish(piece->slot, result);
  }
  changed_.SignalAll();  // others wait for that end, too
}

}  // namespace caravan
