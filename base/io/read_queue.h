#ifndef CARAVAN_BASE_IO_READ_QUEUE_H_
#define CARAVAN_BASE_IO_READ_QUEUE_H_

// Many reads of files at once, as a disk wants them: large ones in pieces, a number of pieces under
// way, those that somebody waits for before guesses.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/io/direct_file.h"

namespace caravan {

/// Bytes [offset, offset + out.size()) of a file. Both, and the address, are multiples of
/// kDirectAlignment; the file has them all, but for what rounding up adds behind its end, whose
/// contents are then anything. Memory in large pages (Buffer::PreferLargePages) was read to more
/// than twice as fast as in pages of 4 KiB: docs/performance.md.
struct FileRead {
  const DirectFile* file = nullptr;  // outlives the read
  int64_t offset = 0;
  absl::Span<std::byte> out;
};

enum class ReadPriority {
  kNeeded,  // somebody waits for it
  kGuess,   // begins only while nothing that is needed waits to begin, and never fills the queue
};

/// Thread-safe.
class ReadQueue {
 public:
  /// Measured (docs/performance.md): 16 pieces of 1 MiB under way get 98% of the best rate of any
  /// setting, and the 8 that guesses may take 92%. Smaller pieces are slower; larger ones gain
  /// nothing, and what is needed waits longer behind them.
  struct Options {
    int64_t piece_bytes = int64_t{1} << 20;  // a multiple of kDirectAlignment, 1 GiB at most
    int depth = 16;                          // pieces under way at most
    int tries = 3;      // at a piece, where the disk fails it, before its read is given up
    bool uring = true;  // false: threads that pread
    // Where most reads go to; may be empty. Outlives the queue. The kernel pins it, which backs all
    // of it with pages at once, unless a limit (RLIMIT_MEMLOCK) forbids that.
    absl::Span<std::byte> memory;
  };
  struct Counters {
    int64_t reads = 0;    // that ended well
    int64_t bytes = 0;    // of pieces that ended well
    int64_t retries = 0;  // of pieces that the disk failed
    absl::Duration busy;  // with at least one piece under way
  };

  using Id = uint64_t;
  /// Called once, on a thread of the queue, which it must not hold up for long: where there is only
  /// one, no other piece begins meanwhile. May call the queue, also while it is destroyed.
  using Done = std::function<void(const absl::Status&)>;

  /// By io_uring; where the kernel refuses that (containers), or `uring` is false, by `depth`
  /// threads, or as many as there can be. Errors: ResourceExhausted - no ring and no threads
  /// either.
  static absl::StatusOr<std::unique_ptr<ReadQueue>> Create(const Options& options);
  /// Waits for the pieces under way. Reads that still have pieces to begin end as Cancelled.
  virtual ~ReadQueue() = default;

  /// "io_uring" or "threads".
  virtual absl::string_view Name() const = 0;

  /// Begins a read; `done` gets OK, or DataLoss (the disk failed a piece `tries` times, or the file
  /// is shorter than it was), with the file and the offset, or Cancelled. Reads of one priority
  /// begin in the order in which they were submitted, and may end in any.
  virtual Id Submit(const FileRead& read, ReadPriority priority, Done done) = 0;

  /// Makes a guess needed, the last of those that are. Of no effect on what has ended.
  virtual void Promote(Id id) = 0;

  /// Takes back a guess of which no piece has begun: true, and `done` is not called any more. False
  /// where it is needed (also by Promote), has begun, or has ended.
  virtual bool Cancel(Id id) = 0;

  virtual Counters counters() const = 0;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_IO_READ_QUEUE_H_
