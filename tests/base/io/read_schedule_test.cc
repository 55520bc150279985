#include "base/io/read_schedule.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/buffer.h"
#include "base/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kBlock = kDirectAlignment;
constexpr int64_t kFileBytes = 64 * kBlock;
constexpr auto kNeeded = ReadPriority::kNeeded;
constexpr auto kGuess = ReadPriority::kGuess;

/// A file of the given size, of which nothing is ever read, and memory for reads of it.
class ReadScheduleTest : public ::testing::Test {
 protected:
  ReadScheduleTest() : memory_(*Buffer::Allocate(kFileBytes + kBlock)) {
    file_ = FileOf(kFileBytes);
  }

  std::unique_ptr<DirectFile> FileOf(int64_t bytes) {
    const std::string path = dir_.Write("file", "");
    std::filesystem::resize_file(path, static_cast<uintmax_t>(bytes));
    return *DirectFile::Open(path);
  }

  static ReadQueue::Options OptionsOf(int64_t piece_blocks, int depth) {
    ReadQueue::Options options;
    options.piece_bytes = piece_blocks * kBlock;
    options.depth = depth;
    return options;
  }

  FileRead Blocks(int64_t begin, int64_t count) {
    return {file_.get(), begin * kBlock, {memory_.data() + begin * kBlock, Bytes(count)}};
  }
  static size_t Bytes(int64_t blocks) { return static_cast<size_t>(blocks * kBlock); }

  /// Adds a read whose end is noted in statuses_[name].
  ReadQueue::Id Add(ReadSchedule& schedule, const FileRead& read, ReadPriority priority,
                    const std::string& name) {
    return schedule.Add(read, priority, [this, name](const absl::Status& status) {
      EXPECT_TRUE(statuses_.emplace(name, status).second) << name << " ended twice";
    });
  }

  /// What Begin gives until it gives nothing.
  static std::vector<ReadSchedule::Piece> BeginAll(ReadSchedule& schedule) {
    std::vector<ReadSchedule::Piece> pieces;
    while (const auto piece = schedule.Begin()) pieces.push_back(*piece);
    return pieces;
  }

  /// The blocks at which they begin.
  static std::vector<int64_t> Starts(const std::vector<ReadSchedule::Piece>& pieces) {
    std::vector<int64_t> starts;
    for (const ReadSchedule::Piece& piece : pieces) starts.push_back(piece.offset / kBlock);
    return starts;
  }

  static void FinishWhole(ReadSchedule& schedule, const ReadSchedule::Piece& piece) {
    schedule.Finish(piece.slot, static_cast<int64_t>(piece.out.size()));
  }

  void TellEnded(ReadSchedule& schedule) {
    std::vector<ReadSchedule::Ended> ended;
    schedule.TakeEnded(ended);
    for (const ReadSchedule::Ended& each : ended) each.done(each.status);
  }

  TempDir dir_;
  Buffer memory_;
  std::unique_ptr<DirectFile> file_;
  SimulatedClock clock_;
  std::map<std::string, absl::Status> statuses_;
  std::set<int64_t> begun_;  // where the pieces under way begin
};

TEST_F(ReadScheduleTest, SplitsReadsInOrderAndKeepsTheDepth) {
  ReadSchedule schedule(OptionsOf(4, 3), &clock_);
  Add(schedule, Blocks(0, 10), kNeeded, "a");
  Add(schedule, Blocks(20, 4), kNeeded, "b");
  std::vector<ReadSchedule::Piece> pieces = BeginAll(schedule);
  EXPECT_THAT(Starts(pieces), ElementsAre(0, 4, 8));
  EXPECT_EQ(pieces[1].out.data(), memory_.data() + 4 * kBlock);
  EXPECT_EQ(pieces[1].out.size(), Bytes(4));
  EXPECT_EQ(pieces[2].out.size(), Bytes(2));
  EXPECT_EQ(pieces[2].file, file_.get());
  EXPECT_FALSE(schedule.Ready());

  FinishWhole(schedule, pieces[1]);
  EXPECT_THAT(Starts(BeginAll(schedule)), ElementsAre(20));
  FinishWhole(schedule, pieces[2]);
  TellEnded(schedule);
  EXPECT_THAT(statuses_, IsEmpty());
  FinishWhole(schedule, pieces[0]);
  EXPECT_TRUE(schedule.Ready());
  TellEnded(schedule);
  EXPECT_EQ(statuses_.at("a"), absl::OkStatus());
  EXPECT_EQ(statuses_.size(), 1u);
  EXPECT_FALSE(schedule.Idle());
}

TEST_F(ReadScheduleTest, AnEmptyReadEndsAtOnce) {
  ReadSchedule schedule(OptionsOf(4, 3), &clock_);
  Add(schedule, Blocks(3, 0), kGuess, "a");
  EXPECT_FALSE(schedule.Begin().has_value());
  EXPECT_FALSE(schedule.Idle());
  TellEnded(schedule);
  EXPECT_EQ(statuses_.at("a"), absl::OkStatus());
  EXPECT_TRUE(schedule.Idle());
}

TEST_F(ReadScheduleTest, NeededPiecesComeFirstAndFindRoomBesideGuesses) {
  ReadSchedule schedule(OptionsOf(1, 4), &clock_);
  Add(schedule, Blocks(0, 8), kGuess, "guess");
  std::vector<ReadSchedule::Piece> guesses = BeginAll(schedule);
  EXPECT_THAT(Starts(guesses), ElementsAre(0, 1));  // half of the depth
  Add(schedule, Blocks(40, 3), kNeeded, "needed");
  const std::vector<ReadSchedule::Piece> needed = BeginAll(schedule);
  EXPECT_THAT(Starts(needed), ElementsAre(40, 41));
  FinishWhole(schedule, guesses[0]);
  EXPECT_THAT(Starts(BeginAll(schedule)), ElementsAre(42));
  FinishWhole(schedule, needed[0]);
  FinishWhole(schedule, needed[1]);
  // Room for two; of guesses one is under way.
  EXPECT_THAT(Starts(BeginAll(schedule)), ElementsAre(2));
}

TEST_F(ReadScheduleTest, ADepthOfOneServesGuessesToo) {
  ReadSchedule schedule(OptionsOf(1, 1), &clock_);
  Add(schedule, Blocks(0, 1), kGuess, "guess");
  EXPECT_THAT(Starts(BeginAll(schedule)), ElementsAre(0));
}

TEST_F(ReadScheduleTest, PromotedReadsGoBehindThoseThatAreNeeded) {
  ReadSchedule schedule(OptionsOf(1, 4), &clock_);
  Add(schedule, Blocks(0, 6), kGuess, "first");
  const ReadQueue::Id second = Add(schedule, Blocks(10, 2), kGuess, "second");
  EXPECT_THAT(Starts(BeginAll(schedule)), ElementsAre(0, 1));
  Add(schedule, Blocks(20, 1), kNeeded, "needed");
  schedule.Promote(second);
  schedule.Promote(second);
  EXPECT_THAT(Starts(BeginAll(schedule)), ElementsAre(20, 10));
}

TEST_F(ReadScheduleTest, PromotedPiecesCountAsGuessesNoMore) {
  ReadSchedule schedule(OptionsOf(1, 4), &clock_);
  const ReadQueue::Id first = Add(schedule, Blocks(0, 2), kGuess, "first");
  Add(schedule, Blocks(10, 4), kGuess, "second");
  EXPECT_THAT(Starts(BeginAll(schedule)), ElementsAre(0, 1));
  EXPECT_FALSE(schedule.Ready());
  schedule.Promote(first);
  EXPECT_THAT(Starts(BeginAll(schedule)), ElementsAre(10, 11));
}

TEST_F(ReadScheduleTest, OnlyAGuessThatHasNotBegunIsTakenBack) {
  ReadSchedule schedule(OptionsOf(1, 2), &clock_);
  const ReadQueue::Id begun = Add(schedule, Blocks(0, 3), kGuess, "begun");
  const ReadQueue::Id waits = Add(schedule, Blocks(10, 1), kGuess, "waits");
  const ReadQueue::Id promoted = Add(schedule, Blocks(20, 1), kGuess, "promoted");
  const ReadQueue::Id needed = Add(schedule, Blocks(30, 1), kNeeded, "needed");
  EXPECT_THAT(Starts({*schedule.Begin(), *schedule.Begin()}), ElementsAre(30, 0));
  schedule.Promote(promoted);
  EXPECT_FALSE(schedule.Cancel(begun).has_value());
  EXPECT_FALSE(schedule.Cancel(promoted).has_value());
  EXPECT_FALSE(schedule.Cancel(needed).has_value());
  EXPECT_TRUE(schedule.Cancel(waits).has_value());
  EXPECT_FALSE(schedule.Cancel(waits).has_value());
  schedule.Promote(waits);
  EXPECT_FALSE(schedule.Cancel(12345).has_value());
}

TEST_F(ReadScheduleTest, ShortReadsGoOnWhereDirectReadsMayBegin) {
  ReadSchedule schedule(OptionsOf(4, 2), &clock_);
  Add(schedule, Blocks(8, 4), kNeeded, "a");
  const auto first = schedule.Begin();
  schedule.Finish(first->slot, 2 * kBlock + 100);
  const auto second = schedule.Begin();
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->slot, first->slot);
  EXPECT_EQ(second->offset, 10 * kBlock);
  EXPECT_EQ(second->out.data(), memory_.data() + 10 * kBlock);
  EXPECT_EQ(second->out.size(), Bytes(2));
  FinishWhole(schedule, *second);
  TellEnded(schedule);
  EXPECT_EQ(statuses_.at("a"), absl::OkStatus());
  EXPECT_EQ(schedule.counters().retries, 0);
}

TEST_F(ReadScheduleTest, WhatRoundingUpAddsNeedNotArrive) {
  file_ = FileOf(10 * kBlock + 7);
  ReadSchedule schedule(OptionsOf(2, 4), &clock_);
  Add(schedule, Blocks(8, 3), kNeeded, "a");
  const std::vector<ReadSchedule::Piece> pieces = BeginAll(schedule);
  EXPECT_THAT(Starts(pieces), ElementsAre(8, 10));
  FinishWhole(schedule, pieces[0]);
  schedule.Finish(pieces[1].slot, 7);
  TellEnded(schedule);
  EXPECT_EQ(statuses_.at("a"), absl::OkStatus());
  EXPECT_EQ(schedule.counters().bytes, 2 * kBlock + 7);
}

TEST_F(ReadScheduleTest, AFileThatBecameShorterIsDataLoss) {
  file_ = FileOf(11 * kBlock);
  ReadSchedule schedule(OptionsOf(4, 4), &clock_);
  Add(schedule, Blocks(8, 3), kNeeded, "cut");
  auto piece = schedule.Begin();
  schedule.Finish(piece->slot, kBlock + 5);
  piece = schedule.Begin();
  ASSERT_TRUE(piece.has_value());
  schedule.Finish(piece->slot, 5);
  TellEnded(schedule);
  EXPECT_EQ(statuses_.at("cut").code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(statuses_.at("cut").message(),
            absl::StrCat(file_->path(), ": the file is shorter than it was: it ends at ",
                         9 * kBlock + 5, " of ", 11 * kBlock, " bytes"));
}

TEST_F(ReadScheduleTest, FailedPiecesAreTriedAgainThenTheReadIsDataLoss) {
  ReadQueue::Options options = OptionsOf(1, 4);
  options.tries = 3;
  ReadSchedule schedule(options, &clock_);
  Add(schedule, Blocks(5, 1), kNeeded, "a");
  Add(schedule, Blocks(6, 1), kNeeded, "b");
  const std::vector<ReadSchedule::Piece> pieces = BeginAll(schedule);
  for (int i = 0; i < 2; ++i) {
    for (const ReadSchedule::Piece& piece : pieces) schedule.Finish(piece.slot, -EIO);
    EXPECT_EQ(BeginAll(schedule).size(), 2u);
  }
  schedule.Finish(pieces[0].slot, -EIO);
  FinishWhole(schedule, pieces[1]);
  TellEnded(schedule);
  EXPECT_EQ(statuses_.at("a").code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(statuses_.at("a").message()),
              HasSubstr(absl::StrCat(file_->path(), ": reading at ", 5 * kBlock)));
  EXPECT_THAT(std::string(statuses_.at("a").message()), HasSubstr("Input/output error"));
  EXPECT_EQ(statuses_.at("b"), absl::OkStatus());
  EXPECT_EQ(schedule.counters().retries, 4);
  EXPECT_EQ(schedule.counters().reads, 1);
}

TEST_F(ReadScheduleTest, InterruptionsAreNoFailuresButHaveAnEnd) {
  ReadSchedule schedule(OptionsOf(1, 4), &clock_);
  Add(schedule, Blocks(0, 1), kNeeded, "a");
  Add(schedule, Blocks(1, 1), kNeeded, "b");
  auto pieces = BeginAll(schedule);
  for (int i = 0; i < 50; ++i) {
    schedule.Finish(pieces[0].slot, i % 2 == 0 ? -EINTR : -EAGAIN);
    ASSERT_EQ(BeginAll(schedule).size(), 1u);
  }
  FinishWhole(schedule, pieces[0]);
  TellEnded(schedule);
  EXPECT_EQ(statuses_.at("a"), absl::OkStatus());
  EXPECT_EQ(schedule.counters().retries, 0);
  int attempts = 0;
  do {
    schedule.Finish(pieces[1].slot, -EAGAIN);
    ++attempts;
  } while (!BeginAll(schedule).empty());
  EXPECT_LT(attempts, 10000);
  TellEnded(schedule);
  EXPECT_EQ(statuses_.at("b").code(), absl::StatusCode::kDataLoss);
}

TEST_F(ReadScheduleTest, AFailedReadEndsWhenNoPieceWritesToItsMemoryAnyMore) {
  ReadQueue::Options options = OptionsOf(1, 2);
  options.tries = 1;
  ReadSchedule schedule(options, &clock_);
  Add(schedule, Blocks(0, 8), kNeeded, "fails");
  Add(schedule, Blocks(10, 1), kNeeded, "next");
  const std::vector<ReadSchedule::Piece> pieces = BeginAll(schedule);
  schedule.Finish(pieces[0].slot, -EIO);
  TellEnded(schedule);
  EXPECT_THAT(statuses_, IsEmpty());
  // Its six other pieces do not begin.
  EXPECT_THAT(Starts(BeginAll(schedule)), ElementsAre(10));
  schedule.Finish(pieces[1].slot, 1);  // and this is not read again
  EXPECT_THAT(BeginAll(schedule), IsEmpty());
  TellEnded(schedule);
  EXPECT_EQ(statuses_.at("fails").code(), absl::StatusCode::kDataLoss);
}

TEST_F(ReadScheduleTest, StopCancelsWhatHasNotBegun) {
  ReadSchedule schedule(OptionsOf(1, 4), &clock_);
  Add(schedule, Blocks(0, 1), kNeeded, "whole");
  Add(schedule, Blocks(10, 8), kNeeded, "part");
  const std::vector<ReadSchedule::Piece> pieces = BeginAll(schedule);
  Add(schedule, Blocks(20, 1), kNeeded, "waits");
  Add(schedule, Blocks(21, 1), kGuess, "guess");
  schedule.Stop();
  Add(schedule, Blocks(22, 1), kNeeded, "late");
  EXPECT_THAT(BeginAll(schedule), IsEmpty());
  TellEnded(schedule);
  for (const char* const name : {"waits", "guess", "late"}) {
    EXPECT_EQ(statuses_.at(name).code(), absl::StatusCode::kCancelled) << name;
  }
  EXPECT_EQ(statuses_.size(), 3u);
  EXPECT_FALSE(schedule.Idle());
  for (const ReadSchedule::Piece& piece : pieces) FinishWhole(schedule, piece);
  TellEnded(schedule);
  EXPECT_EQ(statuses_.at("whole"), absl::OkStatus());
  EXPECT_EQ(statuses_.at("part").code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(schedule.Idle());
}

TEST_F(ReadScheduleTest, BusyIsTheTimeWithPiecesUnderWay) {
  ReadSchedule schedule(OptionsOf(1, 4), &clock_);
  Add(schedule, Blocks(0, 2), kNeeded, "a");
  clock_.Advance(absl::Seconds(100));
  const std::vector<ReadSchedule::Piece> pieces = BeginAll(schedule);
  clock_.Advance(absl::Seconds(1));
  FinishWhole(schedule, pieces[0]);
  clock_.Advance(absl::Seconds(2));
  EXPECT_EQ(schedule.counters().busy, absl::Seconds(3));
  FinishWhole(schedule, pieces[1]);
  clock_.Advance(absl::Seconds(100));
  EXPECT_EQ(schedule.counters().busy, absl::Seconds(3));
  EXPECT_EQ(schedule.counters().bytes, 2 * kBlock);
}

using ReadScheduleDeathTest = ReadScheduleTest;

TEST_F(ReadScheduleDeathTest, ReadsThatODirectCannotDoAreBugs) {
  ReadSchedule schedule(OptionsOf(1, 4), &clock_);
  FileRead read = Blocks(0, 2);
  read.offset = 512;
  EXPECT_DEATH(Add(schedule, read, kNeeded, "a"), "check failed");
  read = Blocks(0, 2);
  read.out = read.out.subspan(16);
  EXPECT_DEATH(Add(schedule, read, kNeeded, "a"), "check failed");
  EXPECT_DEATH(Add(schedule, Blocks(63, 2), kNeeded, "a"), "check failed");
}

// A plain model of the contract, against which random scripts run: every read with all of its
// pieces in a table, looked through from the start for each question.
class PlainModel {
 public:
  enum class Is { kWaiting, kUnderWay, kOver };
  struct Piece {
    int64_t offset = 0;
    int64_t bytes = 0;   // asked for
    int64_t wanted = 0;  // that the file has
    int64_t arrived = 0;
    int failures = 0;
    Is is = Is::kWaiting;
  };
  struct Read {
    int order = 0;  // among those of its priority
    ReadPriority priority = kNeeded;
    std::vector<Piece> pieces;
    bool failed = false;
    bool cancelled = false;
    bool taken_back = false;
    bool ended = false;
  };

  PlainModel(const ReadQueue::Options& options, int64_t file_bytes)
      : options_(options), file_bytes_(file_bytes) {}

  void Add(ReadQueue::Id id, const FileRead& what, ReadPriority priority) {
    Read read;
    read.order = next_order_++;
    read.priority = priority;
    const int64_t end = what.offset + static_cast<int64_t>(what.out.size());
    for (int64_t offset = what.offset; offset < end; offset += options_.piece_bytes) {
      const int64_t bytes = std::min(options_.piece_bytes, end - offset);
      read.pieces.push_back({offset, bytes, std::min(bytes, file_bytes_ - offset)});
    }
    read.cancelled = stopped_;
    reads_[id] = read;
  }
  void Promote(ReadQueue::Id id) {
    Read& read = reads_.at(id);
    if (read.priority == kNeeded) return;
    read.priority = kNeeded;
    read.order = next_order_++;
  }
  bool Cancel(ReadQueue::Id id) {
    Read& read = reads_.at(id);
    if (read.priority == kNeeded || Begun(read) || IsEnding(read)) return false;
    read.taken_back = true;
    return true;
  }
  void Stop() {
    stopped_ = true;
    for (auto& [id, read] : reads_) {
      if (Waits(read)) read.cancelled = true;
    }
  }
  /// The offset of the piece that begins next; -1: none.
  int64_t BeginNext() {
    if (UnderWay(std::nullopt) >= options_.depth) return -1;
    for (const ReadPriority priority : {kNeeded, kGuess}) {
      Read* first = nullptr;
      for (auto& [id, read] : reads_) {
        if (read.priority != priority || !Waits(read)) continue;
        if (first == nullptr || read.order < first->order) first = &read;
      }
      if (first == nullptr) continue;
      if (priority == kGuess && UnderWay(kGuess) >= std::max(1, options_.depth / 2)) return -1;
      for (Piece& piece : first->pieces) {
        if (piece.is != Is::kWaiting) continue;
        piece.is = Is::kUnderWay;
        return piece.offset;
      }
    }
    return -1;
  }
  /// Whether the piece is over.
  bool Finish(int64_t offset, int64_t result) {
    Read& read = *ReadOf(offset);
    Piece& piece = *PieceOf(offset);
    bool over = read.failed || read.cancelled;
    if (over) {
      // Whatever came is of no interest.
    } else if (result == -EINTR || result == -EAGAIN) {
      return false;
    } else if (result < 0) {
      over = ++piece.failures == options_.tries;
      read.failed = over;
    } else {
      const int64_t arrived = piece.arrived / kBlock * kBlock + result;
      read.failed = arrived < piece.wanted && arrived <= piece.arrived;
      over = read.failed || arrived >= piece.wanted;
      piece.arrived = arrived;
    }
    if (over) piece.is = Is::kOver;
    return over;
  }
  /// The reads that have ended since the last call, and how: 'o', 'f' or 'c'.
  std::map<ReadQueue::Id, char> NewlyEnded() {
    std::map<ReadQueue::Id, char> ended;
    for (auto& [id, read] : reads_) {
      if (read.ended || read.taken_back || Waits(read)) continue;
      bool under_way = false;
      for (const Piece& piece : read.pieces) under_way |= piece.is == Is::kUnderWay;
      if (under_way) continue;
      read.ended = true;
      ended[id] = read.cancelled ? 'c' : read.failed ? 'f' : 'o';
    }
    return ended;
  }
  const Piece* Find(int64_t offset) { return PieceOf(offset); }
  bool Holds(int64_t begin, int64_t end) const {
    for (const auto& [id, read] : reads_) {
      if (read.ended || read.taken_back) continue;
      for (const Piece& piece : read.pieces) {
        if (piece.offset < end && begin < piece.offset + piece.bytes) return true;
      }
    }
    return false;
  }

 private:
  static bool Begun(const Read& read) {
    return std::any_of(read.pieces.begin(), read.pieces.end(),
                       [](const Piece& piece) { return piece.is != Is::kWaiting; });
  }
  static bool IsEnding(const Read& read) {
    return read.failed || read.cancelled || read.taken_back || read.ended;
  }
  static bool Waits(const Read& read) {
    return !IsEnding(read) &&
           std::any_of(read.pieces.begin(), read.pieces.end(),
                       [](const Piece& piece) { return piece.is == Is::kWaiting; });
  }
  int UnderWay(std::optional<ReadPriority> priority) const {
    int count = 0;
    for (const auto& [id, read] : reads_) {
      if (priority.has_value() && read.priority != *priority) continue;
      for (const Piece& piece : read.pieces) count += piece.is == Is::kUnderWay ? 1 : 0;
    }
    return count;
  }
  Read* ReadOf(int64_t offset) {
    for (auto& [id, read] : reads_) {
      for (const Piece& piece : read.pieces) {
        if (piece.offset == offset && piece.is == Is::kUnderWay) return &read;
      }
    }
    return nullptr;
  }
  Piece* PieceOf(int64_t offset) {
    for (Piece& piece : ReadOf(offset)->pieces) {
      if (piece.offset == offset) return &piece;
    }
    return nullptr;
  }

  const ReadQueue::Options options_;
  const int64_t file_bytes_;
  std::map<ReadQueue::Id, Read> reads_;
  int next_order_ = 0;
  bool stopped_ = false;
};

TEST_F(ReadScheduleTest, RandomScriptsDoWhatAPlainModelDoes) {
  constexpr int kScripts = 3000;
  file_ = FileOf(kFileBytes - 1000);
  for (int seed = 0; seed < kScripts; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    std::mt19937 random(static_cast<unsigned>(seed));
    const auto draw = [&random](int below) {
      return static_cast<int>(random() % static_cast<unsigned>(below));
    };
    ReadQueue::Options options = OptionsOf(1 + draw(4), 1 + draw(6));
    options.tries = 1 + draw(3);
    ReadSchedule schedule(options, &clock_);
    PlainModel model(options, file_->bytes());
    std::vector<ReadQueue::Id> ids;
    std::map<ReadQueue::Id, char> ended;
    std::vector<ReadSchedule::Piece> under_way;
    std::set<int> slots;
    const int stop_at = draw(4) == 0 ? draw(80) : -1;

    for (int step = 0; step < 80 || !under_way.empty(); ++step) {
      ASSERT_LT(step, 10000) << "a script that does not end";
      if (step == stop_at) {
        schedule.Stop();
        model.Stop();
      }
      const int kind = draw(10);
      if (kind < 3 && step < 80) {
        const int64_t count = draw(12);
        const FileRead read = Blocks(draw(static_cast<int>(64 - count + 1)), count);
        // Pieces are told apart by their offsets.
        if (model.Holds(read.offset, read.offset + count * kBlock)) continue;
        const auto priority = draw(2) == 0 ? kGuess : kNeeded;
        // Given with the call: an empty read may end before its id is known.
        const ReadQueue::Id next = ids.size() + 1;
        const ReadQueue::Id id =
            schedule.Add(read, priority, [&ended, next](const absl::Status& status) {
              const bool failed = status.code() == absl::StatusCode::kDataLoss;
              ASSERT_TRUE(ended.emplace(next, status.ok() ? 'o' : failed ? 'f' : 'c').second);
            });
        ASSERT_EQ(id, next);
        ids.push_back(id);
        model.Add(id, read, priority);
      } else if (kind == 3 && !ids.empty()) {
        const ReadQueue::Id id = ids[static_cast<size_t>(draw(static_cast<int>(ids.size())))];
        schedule.Promote(id);
        model.Promote(id);
      } else if (kind == 4 && !ids.empty()) {
        const ReadQueue::Id id = ids[static_cast<size_t>(draw(static_cast<int>(ids.size())))];
        ASSERT_EQ(schedule.Cancel(id).has_value(), model.Cancel(id));
      } else if (!under_way.empty()) {
        const size_t at = static_cast<size_t>(draw(static_cast<int>(under_way.size())));
        const ReadSchedule::Piece piece = under_way[at];
        under_way.erase(under_way.begin() + static_cast<std::ptrdiff_t>(at));
        slots.erase(piece.slot);
        const int64_t base = options.piece_bytes;
        const int64_t size = static_cast<int64_t>(piece.out.size());
        const int64_t in_file = std::min(size, file_->bytes() - piece.offset);
        int64_t result = in_file;
        switch (draw(8)) {
          case 0:
            result = -EIO;
            break;
          case 1:
            result = draw(2) == 0 ? -EINTR : -EAGAIN;
            break;
          case 2:
            result = draw(static_cast<int>(in_file));
            break;
          case 3:
            result = in_file / kBlock / 2 * kBlock;
            break;
          default:
            break;
        }
        // The model names a piece by where it began.
        int64_t begin = -1;
        for (int64_t back = 0; back < base && begin < 0; back += kBlock) {
          if (begun_.count(piece.offset - back) > 0) begin = piece.offset - back;
        }
        ASSERT_GE(begin, 0);
        schedule.Finish(piece.slot, result);
        if (model.Finish(begin, result)) {
          begun_.erase(begin);
        } else {
          // It goes on at once, whatever else waits, in the same slot.
          const auto again = schedule.Begin();
          ASSERT_TRUE(again.has_value());
          ASSERT_EQ(again->slot, piece.slot);
          const PlainModel::Piece& expected = *model.Find(begin);
          ASSERT_EQ(again->offset, begin + expected.arrived / kBlock * kBlock);
          ASSERT_EQ(again->offset + static_cast<int64_t>(again->out.size()),
                    begin + expected.bytes);
          ASSERT_EQ(again->out.data(), memory_.data() + again->offset);
          under_way.push_back(*again);
          ASSERT_TRUE(slots.insert(again->slot).second);
        }
      }
      while (true) {
        const std::optional<ReadSchedule::Piece> piece = schedule.Begin();
        const int64_t expected = model.BeginNext();
        ASSERT_EQ(piece.has_value() ? piece->offset : -1, expected);
        if (!piece.has_value()) break;
        ASSERT_EQ(static_cast<int64_t>(piece->out.size()), model.Find(expected)->bytes);
        ASSERT_TRUE(slots.insert(piece->slot).second);
        ASSERT_LT(piece->slot, options.depth);
        begun_.insert(piece->offset);
        under_way.push_back(*piece);
      }
      ended.clear();
      TellEnded(schedule);
      ASSERT_EQ(ended, model.NewlyEnded());
      ASSERT_FALSE(schedule.Ready());
    }
    begun_.clear();
  }
}

}  // namespace
}  // namespace caravan
