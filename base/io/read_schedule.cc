#include "base/io/read_schedule.h"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/check.h"
#include "base/int_math.h"

namespace caravan {
namespace {

/// In a row, of one piece. EINTR and EAGAIN say nothing about the disk, so they are no failures;
/// but a kernel that says nothing else must not keep a read for ever.
constexpr int kMaxInterruptions = 1000;

constexpr absl::string_view kStopped = "the read queue ends";

bool IsAligned(int64_t value) { return value % kDirectAlignment == 0; }

}  // namespace

ReadSchedule::ReadSchedule(const ReadQueue::Options& options, const Clock* clock)
    : options_(options), clock_(clock) {
  CARAVAN_CHECK(options.piece_bytes > 0 && IsAligned(options.piece_bytes));
  CARAVAN_CHECK(options.depth >= 1 && options.tries >= 1);
  slots_.resize(static_cast<size_t>(options.depth));
  again_.reserve(slots_.size());
  for (int slot = options.depth - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

ReadQueue::Id ReadSchedule::Add(const FileRead& read, ReadPriority priority, ReadQueue::Done done) {
  CARAVAN_CHECK(IsAligned(read.offset) && IsAligned(static_cast<int64_t>(read.out.size())) &&
                IsAligned(static_cast<int64_t>(reinterpret_cast<uintptr_t>(read.out.data()))));
  CARAVAN_CHECK(read.offset >= 0 && read.offset + static_cast<int64_t>(read.out.size()) <=
                                        RoundUp(read.file->bytes(), kDirectAlignment));
  if (spare_.empty()) spare_.emplace_back();
  Reads& waiting = Waiting(priority);
  waiting.splice(waiting.end(), spare_, spare_.begin());
  const Reads::iterator added = std::prev(waiting.end());
  *added = Read{++last_id_, read, priority, std::move(done)};
  reads_[added->id] = added;
  if (stopped_) added->status = absl::CancelledError(kStopped);
  if (stopped_ || read.out.empty()) StopBeginning(added);
  EndIfOver(added);
  return last_id_;
}

void ReadSchedule::Promote(ReadQueue::Id id) {
  const auto found = reads_.find(id);
  if (found == reads_.end() || found->second->priority == ReadPriority::kNeeded) return;
  const Reads::iterator read = found->second;
  read->priority = ReadPriority::kNeeded;
  guess_pieces_ -= read->pieces_under_way;
  if (read->waits) needed_.splice(needed_.end(), guesses_, read);
}

std::optional<ReadQueue::Done> ReadSchedule::Cancel(ReadQueue::Id id) {
  const auto found = reads_.find(id);
  if (found == reads_.end()) return std::nullopt;
  const Reads::iterator read = found->second;
  if (read->priority != ReadPriority::kGuess || read->begun_bytes > 0) return std::nullopt;
  reads_.erase(found);
  spare_.splice(spare_.end(), guesses_, read);
  return std::exchange(read->done, nullptr);
}

ReadQueue::Counters ReadSchedule::counters() const {
  ReadQueue::Counters counters = counters_;
  if (free_slots_.size() < slots_.size()) counters.busy += clock_->Now() - busy_since_;
  return counters;
}

void ReadSchedule::Stop() {
  stopped_ = true;
  for (Reads* const waiting : {&needed_, &guesses_}) {
    while (!waiting->empty()) {
      const Reads::iterator read = waiting->begin();
      read->status = absl::CancelledError(kStopped);
      StopBeginning(read);
      EndIfOver(read);
    }
  }
}

ReadSchedule::Reads* ReadSchedule::NextToBegin() {
  if (free_slots_.empty()) return nullptr;
  if (!needed_.empty()) return &needed_;
  if (guesses_.empty() || guess_pieces_ >= GuessDepth(options_.depth)) return nullptr;
  return &guesses_;
}

bool ReadSchedule::Ready() {
  return !again_.empty() || !ended_.empty() || NextToBegin() != nullptr;
}

std::optional<ReadSchedule::Piece> ReadSchedule::Begin() {
  // These have their place already, so they take nobody's.
  if (!again_.empty()) {
    const int slot = again_.back();
    again_.pop_back();
    return Attempt(slot);
  }
  Reads* const waiting = NextToBegin();
  if (waiting == nullptr) return std::nullopt;
  if (free_slots_.size() == slots_.size()) busy_since_ = clock_->Now();
  const int slot = free_slots_.back();
  free_slots_.pop_back();
  const Reads::iterator read = waiting->begin();
  const FileRead& what = read->what;
  Slot& piece = slots_[static_cast<size_t>(slot)];
  piece = Slot{read, what.offset + read->begun_bytes,
               what.out.subspan(static_cast<size_t>(read->begun_bytes),
                                static_cast<size_t>(options_.piece_bytes))};
  read->begun_bytes += static_cast<int64_t>(piece.out.size());
  ++read->pieces_under_way;
  if (read->priority == ReadPriority::kGuess) ++guess_pieces_;
  if (read->begun_bytes == static_cast<int64_t>(what.out.size())) StopBeginning(read);
  return Attempt(slot);
}

void ReadSchedule::Finish(int slot, int64_t result) {
  Slot& piece = slots_[static_cast<size_t>(slot)];
  if (!IsOver(piece, result)) {
    again_.push_back(slot);
    return;
  }
  free_slots_.push_back(slot);
  if (free_slots_.size() == slots_.size()) counters_.busy += clock_->Now() - busy_since_;
  const Reads::iterator read = piece.read;
  if (read->priority == ReadPriority::kGuess) --guess_pieces_;
  --read->pieces_under_way;
  // What waits of a read that failed need not begin. It ends when no piece writes to its memory any
  // more, not before.
  if (!read->status.ok()) StopBeginning(read);
  EndIfOver(read);
}

void ReadSchedule::TakeEnded(std::vector<Ended>& ended) {
  CARAVAN_CHECK(ended.empty());
  ended.swap(ended_);
}

int64_t ReadSchedule::AttemptStart(const Slot& piece) {
  return piece.arrived / kDirectAlignment * kDirectAlignment;
}

ReadSchedule::Piece ReadSchedule::Attempt(int slot) const {
  const Slot& piece = slots_[static_cast<size_t>(slot)];
  const int64_t start = AttemptStart(piece);
  return Piece{slot, piece.read->what.file, piece.offset + start,
               piece.out.subspan(static_cast<size_t>(start))};
}

bool ReadSchedule::IsOver(Slot& piece, int64_t result) {
  Read& read = *piece.read;
  if (!read.status.ok()) return true;  // nobody wants it any more
  const DirectFile& file = *read.what.file;
  const int64_t start = AttemptStart(piece);
  if ((result == -EINTR || result == -EAGAIN) && ++piece.interruptions < kMaxInterruptions) {
    return false;
  }
  if (result < 0) {
    if (++piece.failures < options_.tries) {
      ++counters_.retries;
      return false;
    }
    const std::string what = absl::StrCat(file.path(), ": reading at ", piece.offset + start);
    read.status =
        absl::DataLossError(absl::ErrnoToStatus(-static_cast<int>(result), what).message());
    return true;
  }
  piece.interruptions = 0;
  // What rounding up adds behind the file's end is not there to be read.
  const int64_t wanted =
      std::min(static_cast<int64_t>(piece.out.size()), file.bytes() - piece.offset);
  const int64_t arrived = start + result;
  if (arrived >= wanted) {
    counters_.bytes += wanted;
    return true;
  }
  // Short of that, the kernel was interrupted and goes on; unless it has no more.
  if (arrived > piece.arrived) {
    piece.arrived = arrived;
    return false;
  }
  read.status = absl::DataLossError(
      absl::StrCat(file.path(), ": the file is shorter than it was: it ends at ",
                   piece.offset + arrived, " of ", file.bytes(), " bytes"));
  return true;
}

ReadSchedule::Reads& ReadSchedule::Waiting(ReadPriority priority) {
  return priority == ReadPriority::kNeeded ? needed_ : guesses_;
}

void ReadSchedule::StopBeginning(Reads::iterator read) {
  if (!read->waits) return;
  read->waits = false;
  begun_.splice(begun_.end(), Waiting(read->priority), read);
}

void ReadSchedule::EndIfOver(Reads::iterator read) {
  if (read->waits || read->pieces_under_way > 0) return;
  if (read->status.ok()) ++counters_.reads;
  ended_.push_back({std::exchange(read->done, nullptr), std::move(read->status)});
  reads_.erase(read->id);
  spare_.splice(spare_.end(), begun_, read);
}

}  // namespace caravan
