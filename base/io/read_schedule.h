#ifndef CARAVAN_BASE_IO_READ_SCHEDULE_H_
#define CARAVAN_BASE_IO_READ_SCHEDULE_H_

// What a ReadQueue reads next and what has become of it: the decisions, without any I/O. An engine
// takes pieces, reads them, and says how that ended.
//
//   Add -> waiting --Begin--> its pieces are under way --Finish--> ended -> TakeEnded
//            `--Cancel (a guess of which no piece has begun)

#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/clock.h"
#include "base/io/direct_file.h"
#include "base/io/read_queue.h"

namespace caravan {

/// Used by one thread at a time. Allocates nothing for a piece, and nothing for a read once it has
/// held as many as it will hold.
class ReadSchedule {
 public:
  /// What an engine shall read.
  struct Piece {
    int slot = 0;  // in [0, depth), its own as long as it is under way
    const DirectFile* file = nullptr;
    int64_t offset = 0;
    absl::Span<std::byte> out;
  };
  struct Ended {
    ReadQueue::Done done;
    absl::Status status;
  };

  /// Borrows `clock`. REQUIRES: as ReadQueue::Create.
  ReadSchedule(const ReadQueue::Options& options, const Clock* clock);

  /// As the functions of ReadQueue with these names. Cancel gives the callback back, to be
  /// destroyed where no lock is held.
  ReadQueue::Id Add(const FileRead& read, ReadPriority priority, ReadQueue::Done done);
  void Promote(ReadQueue::Id id);
  std::optional<ReadQueue::Done> Cancel(ReadQueue::Id id);
  ReadQueue::Counters counters() const;

  /// Nothing begins any more: reads that still have pieces to begin, and those that come, end as
  /// Cancelled.
  void Stop();

  /// The piece to read next; nullopt: none now. It is then under way until Finish.
  std::optional<Piece> Begin();

  /// The piece in `slot` gave so many bytes, or failed with -errno. Begin may give the rest of it
  /// again, in the same slot.
  void Finish(int slot, int64_t result);

  /// Puts the reads that have ended into `ended`, in their order. REQUIRES: it is empty.
  void TakeEnded(std::vector<Ended>& ended);

  /// Whether Begin or TakeEnded have something to give.
  bool Ready();
  /// Whether there is no read, ended or not.
  bool Idle() const { return reads_.empty() && ended_.empty(); }

  /// How many pieces of guesses are under way at most. A needed read then finds room at once, and
  /// waits in the disk's own queue behind half of what could be there; and that half still keeps
  /// the disk busy (docs/performance.md has rates by depth). With a depth of 1, that one.
  static constexpr int GuessDepth(int depth) { return depth > 1 ? depth / 2 : 1; }

 private:
  struct Read {
    ReadQueue::Id id = 0;
    FileRead what;
    ReadPriority priority = ReadPriority::kNeeded;
    ReadQueue::Done done;
    bool waits = true;        // pieces of it are still to begin
    int64_t begun_bytes = 0;  // of what.out
    int pieces_under_way = 0;
    absl::Status status{};  // why it fails, if it does
  };
  using Reads = std::list<Read>;

  /// A piece under way.
  struct Slot {
    Reads::iterator read;
    int64_t offset = 0;  // in the file
    absl::Span<std::byte> out;
    int64_t arrived = 0;  // bytes
    int failures = 0;
    int interruptions = 0;  // one after the other
  };

  /// Where in the piece's memory its next attempt begins: what O_DIRECT cannot begin at is read
  /// twice.
  static int64_t AttemptStart(const Slot& piece);
  Piece Attempt(int slot) const;
  /// Whether the piece need not be read again. Sets its read's status where it failed.
  bool IsOver(Slot& piece, int64_t result);
  /// The reads whose first gives the next piece; nullptr: none may begin now.
  Reads* NextToBegin();
  Reads& Waiting(ReadPriority priority);
  /// No more pieces of it begin.
  void StopBeginning(Reads::iterator read);
  void EndIfOver(Reads::iterator read);

  const ReadQueue::Options options_;
  const Clock* const clock_;

  // A read is in one of these lists, and moves between them without being copied.
  Reads needed_;   // that wait, first come first
  Reads guesses_;  // likewise
  Reads begun_;    // that do not
  Reads spare_;    // no reads: memory of those to come

  absl::flat_hash_map<ReadQueue::Id, Reads::iterator> reads_;  // but for spare_

  std::vector<Slot> slots_;
  std::vector<int> free_slots_;
  std::vector<int> again_;  // slots whose piece is to be read again
  int guess_pieces_ = 0;    // under way
  std::vector<Ended> ended_;

  ReadQueue::Id last_id_ = 0;
  bool stopped_ = false;
  ReadQueue::Counters counters_;
  absl::Duration busy_since_;  // while pieces are under way
};

}  // namespace caravan

#endif  // CARAVAN_BASE_IO_READ_SCHEDULE_H_
