#ifndef CARAVAN_BASE_IO_URING_READ_QUEUE_H_
#define CARAVAN_BASE_IO_URING_READ_QUEUE_H_

// A ReadQueue over io_uring: one thread hands pieces to the kernel and takes their ends from it,
// with one system call for all that there are.

#include <liburing.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/io/scheduled_read_queue.h"
#include "base/named_thread.h"
#include "base/open_file.h"

namespace caravan {

/// Thread-safe.
class UringReadQueue : public ScheduledReadQueue {
 public:
  /// Errors: Unavailable - the kernel has no io_uring, or not for us; ResourceExhausted - the
  /// system refuses a thread.
  static absl::StatusOr<std::unique_ptr<ReadQueue>> Create(const Options& options);
  ~UringReadQueue() override;

  absl::string_view Name() const override { return "io_uring"; }

 private:
  UringReadQueue(const Options& options, FileDescriptor wake_up)
      : ScheduledReadQueue(options), memory_(options.memory), wake_up_(std::move(wake_up)) {}

  void RegisterMemory();
  void Wake() override;
  void Run();
  void Reap() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  /// Which of the registered buffers `out` is in; nullopt: in none.
  std::optional<int> RegisteredPart(absl::Span<std::byte> out) const;
  void PrepareRead(const ReadSchedule::Piece& piece);
  void PrepareWakeUp();

  const absl::Span<std::byte> memory_;
  const FileDescriptor wake_up_;  // an eventfd
  // The thread sleeps, or is about to: whoever has a piece for it must wake it.
  std::atomic<bool> asleep_{false};

  // Made before the thread, then its own.
  io_uring ring_{};
  bool has_ring_ = false;
  bool memory_registered_ = false;
  uint64_t wake_ups_ = 0;      // where the kernel puts the eventfd's count
  bool can_be_woken_ = false;  // a read of the eventfd is under way

  std::unique_ptr<NamedThread> thread_;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_IO_URING_READ_QUEUE_H_
