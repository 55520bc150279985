#include "base/io/read_queue.h"

#include "base/io/thread_read_queue.h"
#include "base/io/uring_read_queue.h"

namespace caravan {

absl::StatusOr<std::unique_ptr<ReadQueue>> ReadQueue::Create(const Options& options) {
  if (options.uring) {
    absl::StatusOr<std::unique_ptr<ReadQueue>> queue = UringReadQueue::Create(options);
    if (queue.ok()) return queue;
  }
  return ThreadReadQueue::Create(options);
}

}  // namespace caravan
