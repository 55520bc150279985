#ifndef CARAVAN_BASE_IO_THREAD_READ_QUEUE_H_
#define CARAVAN_BASE_IO_THREAD_READ_QUEUE_H_

// A ReadQueue of threads that pread, a thread a piece: for where io_uring is not to be had.

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/io/scheduled_read_queue.h"
#include "base/mutex.h"
#include "base/named_thread.h"

namespace caravan {

/// Thread-safe.
class ThreadReadQueue : public ScheduledReadQueue {
 public:
  /// Errors: ResourceExhausted - the system refuses threads.
  static absl::StatusOr<std::unique_ptr<ReadQueue>> Create(const Options& options);
  ~ThreadReadQueue() override;

  absl::string_view Name() const override { return "threads"; }

 private:
  explicit ThreadReadQueue(const Options& options) : ScheduledReadQueue(options) {}

  void Wake() override { changed_.SignalAll(); }
  void Run();

  CondVar changed_;
  std::vector<std::unique_ptr<NamedThread>> threads_;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_IO_THREAD_READ_QUEUE_H_
