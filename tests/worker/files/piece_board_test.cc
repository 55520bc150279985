// Who is asked for which piece, step by step: time is an argument, and nothing is really read.

#include "worker/files/piece_board.h"

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "gtest/gtest.h"
#include "tests/worker/files/made_file.h"

namespace caravan {
namespace {

using Task = PieceBoard::Task;

constexpr int64_t kBytes = 10;  // of a file, which is one piece

class PieceBoardTest : public ::testing::Test {
 protected:
  /// Sources "0", "1", ... that have all of `num_files` files, and have said so.
  void Start(int num_sources, int num_files) {
    std::vector<std::string> names;
    for (int s = 0; s < num_sources; ++s) names.push_back(absl::StrCat(s));
    board_ = std::make_unique<PieceBoard>(names, options_);
    for (int f = 0; f < num_files; ++f) {
      files_.push_back(std::make_unique<MadeFile>(MakeFile(absl::StrCat("f", f), kBytes)));
    }
    for (const auto& file : files_) {
      board_->Add(file->packed, [](int64_t, int64_t) { return false; });
    }
    board_->Begin();
    for (int s = 0; s < num_sources; ++s) {
      const std::optional<Task> task = board_->Take(now_);
      ASSERT_TRUE(task.has_value() && !task->piece.has_value());
      board_->Listed(*task, Offers(), now_);
    }
  }
  std::vector<OfferedFile> Offers() const {
    std::vector<OfferedFile> offers;
    for (const auto& file : files_) offers.push_back({file->packed.name, kBytes});
    return offers;
  }
  /// There must be something to do.
  Task Take() {
    std::optional<Task> task = board_->Take(now_);
    CARAVAN_CHECK(task.has_value() && task->piece.has_value());
    return *std::move(task);
  }
  bool IsIdle() { return !board_->Take(now_).has_value(); }

  void Come(Task& task, int64_t bytes) {
    const std::string& all = files_[task.file]->bytes;
    const auto* const from = reinterpret_cast<const std::byte*>(all.data()) + task.piece->at();
    ASSERT_TRUE(task.piece->Add(absl::MakeConstSpan(from, static_cast<size_t>(bytes))).ok());
  }
  /// All of the piece comes, and with it the file is whole.
  void Finish(Task task) {
    Come(task, task.piece->lacking());
    const size_t file = task.file;
    ASSERT_TRUE(board_->Settle(std::move(task), {}, now_));
    FileCheck found;
    found.is_right = true;
    EXPECT_TRUE(board_->ReadBack(file, found, "path").empty());
  }
  /// The source gives some bytes and wants to be left alone.
  void Wait(Task task, int64_t bytes, absl::Duration wait) {
    Come(task, bytes);
    PieceBoard::Outcome outcome;
    outcome.wait = wait;
    EXPECT_FALSE(board_->Settle(std::move(task), outcome, now_));
  }
  void Fail(Task task, const absl::Status& why) {
    PieceBoard::Outcome outcome;
    outcome.status = why;
    EXPECT_FALSE(board_->Settle(std::move(task), outcome, now_));
  }
  int64_t BytesFrom(int source) const {
    const std::map<std::string, int64_t>& from = board_->result().bytes_from;
    const auto it = from.find(absl::StrCat(source));
    return it == from.end() ? 0 : it->second;
  }

  PieceBoard::Options options_{.streams_per_source = 2, .max_lists = 1000};
  std::vector<std::unique_ptr<MadeFile>> files_;
  std::unique_ptr<PieceBoard> board_;
  absl::Duration now_ = absl::Seconds(100);
};

TEST_F(PieceBoardTest, ABusySourceIsLeftAloneAndTheIdleOneGivesTheRest) {
  Start(2, 5);
  Task busy = Take();
  Task idle = Take();
  Task busy_too = Take();
  Task idle_too = Take();
  ASSERT_EQ(busy.source, 0u);
  ASSERT_EQ(busy_too.source, 0u);
  const size_t begun = busy.file;
  const size_t not_begun = busy_too.file;
  Wait(std::move(busy), 4, absl::Seconds(10));
  Wait(std::move(busy_too), 0, absl::Seconds(9));
  EXPECT_EQ(board_->NextLook(now_), now_ + absl::Seconds(10));

  // What it had not begun is anybody's again.
  Finish(std::move(idle));
  Task next = Take();
  EXPECT_EQ(next.source, 1u);
  EXPECT_EQ(next.file, not_begun);
  Finish(std::move(next));
  Finish(Take());
  Finish(std::move(idle_too));
  // Nothing else is left: what it had begun comes from the other one, as a whole.
  Task taken_over = Take();
  EXPECT_EQ(taken_over.source, 1u);
  EXPECT_EQ(taken_over.file, begun);
  EXPECT_EQ(taken_over.piece->at(), 0);
  now_ += absl::Seconds(11);
  EXPECT_TRUE(IsIdle()) << "it is nobody else's";
  Finish(std::move(taken_over));
  EXPECT_TRUE(board_->ended());
  EXPECT_TRUE(board_->failure().ok());
  EXPECT_EQ(BytesFrom(0), 0);
  EXPECT_EQ(BytesFrom(1), 5 * kBytes);
}

TEST_F(PieceBoardTest, TwoBusySourcesGiveSideBySide) {
  options_.streams_per_source = 1;
  Start(2, 2);
  Task a = Take();
  Task b = Take();
  Wait(std::move(a), 3, absl::Seconds(2));
  Wait(std::move(b), 3, absl::Seconds(3));
  for (int round = 0; round < 2; ++round) {
    EXPECT_TRUE(IsIdle()) << "both want to be left alone";
    now_ = board_->NextLook(now_);
    a = Take();
    EXPECT_EQ(a.source, 0u);
    EXPECT_EQ(a.piece->at(), 3 + round) << "it goes on where it was";
    EXPECT_TRUE(IsIdle());
    now_ = board_->NextLook(now_);
    b = Take();
    EXPECT_EQ(b.source, 1u) << "while the first is read";
    EXPECT_EQ(b.piece->at(), 3 + round);
    Wait(std::move(a), 1, absl::Seconds(2));
    Wait(std::move(b), 1, absl::Seconds(3));
  }
  now_ += absl::Seconds(3);
  Finish(Take());
  Finish(Take());
  EXPECT_TRUE(board_->ended());
  EXPECT_EQ(BytesFrom(0), kBytes);
  EXPECT_EQ(BytesFrom(1), kBytes);
}

TEST_F(PieceBoardTest, ABusySourceIsAskedForOnePieceAtATimeUntilItGivesAWholeOne) {
  Start(1, 4);
  Task first = Take();
  Task second = Take();
  Wait(std::move(first), 1, absl::Seconds(1));
  Wait(std::move(second), 1, absl::Seconds(1));
  now_ += absl::Seconds(1);
  Task only = Take();
  EXPECT_TRUE(IsIdle());
  Finish(std::move(only));
  Task again = Take();
  EXPECT_EQ(again.piece->at(), 1) << "first what it has begun";
  Task another = Take();
  EXPECT_EQ(another.piece->at(), 0);
  EXPECT_TRUE(IsIdle());
}

TEST_F(PieceBoardTest, APieceIsTakenOverOnce) {
  options_.streams_per_source = 1;
  Start(3, 3);
  Task first = Take();
  Task second = Take();
  Task third = Take();
  const size_t contended = first.file;
  Wait(std::move(first), 5, absl::Hours(1));
  Finish(std::move(second));
  Task taken_over = Take();
  ASSERT_EQ(taken_over.file, contended);
  ASSERT_EQ(taken_over.source, 1u);
  Wait(std::move(taken_over), 5, absl::Seconds(1));
  Finish(std::move(third));
  EXPECT_TRUE(IsIdle()) << "else sources that are busy by turns would never finish it";
  now_ += absl::Seconds(1);
  Task goes_on = Take();
  EXPECT_EQ(goes_on.source, 1u);
  EXPECT_EQ(goes_on.piece->at(), 5);
}

TEST_F(PieceBoardTest, WhoDoesNotAnswerLosesItsPieceToOthersAndIsLostByTheThirdTime) {
  Start(2, 6);
  Task hanging = Take();
  Task good = Take();
  Task hanging_too = Take();
  ASSERT_EQ(hanging.source, 0u);
  ASSERT_EQ(hanging_too.source, 0u);
  const size_t freed = hanging.file;
  now_ += absl::Seconds(20);
  Fail(std::move(hanging), absl::DeadlineExceededError("no answer"));
  Task next = Take();
  EXPECT_EQ(next.source, 1u);
  EXPECT_EQ(next.file, freed);
  // Both were under way when it went away: that is one failure.
  now_ += 2 * options_.retry_delay;
  Fail(std::move(hanging_too), absl::DeadlineExceededError("no answer"));
  for (int failures = 1; failures < 3; ++failures) {
    EXPECT_TRUE(IsIdle()) << "the good one does what it may, the other is left alone";
    now_ += options_.retry_delay;
    Task again = Take();
    EXPECT_EQ(again.source, 0u);
    EXPECT_TRUE(IsIdle()) << "it holds no second piece until it has answered";
    Fail(std::move(again), absl::DeadlineExceededError("no answer"));
  }
  now_ += absl::Hours(1);
  EXPECT_TRUE(IsIdle()) << "it is lost";
  Finish(std::move(good));
  Finish(std::move(next));
  while (!board_->ended()) Finish(Take());
  EXPECT_EQ(BytesFrom(1), 6 * kBytes);
}

TEST_F(PieceBoardTest, WhatWaitsAtASourceThatIsLostComesFromOthers) {
  options_.streams_per_source = 1;
  Start(2, 2);
  Task other = Take();
  Task waits = Take();
  Wait(std::move(other), 5, absl::Seconds(1));
  Wait(std::move(waits), 5, absl::Hours(1));
  now_ += absl::Seconds(1);
  // The first is busy, and so has no claim on what waits at the other, until that one is gone.
  Finish(Take());
  Task taken_over = Take();
  EXPECT_EQ(taken_over.source, 0u);
  Fail(std::move(taken_over), absl::AbortedError("another process by now"));
  now_ += absl::Hours(1);
  Task last = Take();
  EXPECT_EQ(last.source, 1u);
  EXPECT_EQ(last.piece->at(), 0) << "what had come of it was given up when it was taken over";
  Wait(std::move(last), 5, absl::Seconds(1));
  now_ += absl::Seconds(1);
  Fail(Take(), absl::AbortedError("another process by now"));
  EXPECT_TRUE(absl::IsUnavailable(board_->failure())) << board_->failure();
}

TEST_F(PieceBoardTest, HoweverManySourcesThereAreAllShareTheWork) {
  constexpr int kSources = 150;
  Start(kSources, 3 * kSources);
  while (!board_->ended()) {
    // As sixteen streams would.
    std::vector<Task> tasks;
    while (tasks.size() < 16) {
      std::optional<Task> task = board_->Take(now_);
      if (!task.has_value()) break;
      tasks.push_back(*std::move(task));
    }
    ASSERT_FALSE(tasks.empty());
    for (Task& task : tasks) Finish(std::move(task));
  }
  ASSERT_TRUE(board_->failure().ok()) << board_->failure();
  for (int s = 0; s < kSources; ++s) EXPECT_EQ(BytesFrom(s), 3 * kBytes) << s;
}

TEST_F(PieceBoardTest, SourcesThatDoNotSayWhatTheyHaveLeaveStreamsForThoseThatDo) {
  options_.max_lists = 2;
  Start(0, 4);
  board_ = std::make_unique<PieceBoard>(std::vector<std::string>{"0", "1", "2", "3"}, options_);
  for (const auto& file : files_) {
    board_->Add(file->packed, [](int64_t, int64_t) { return false; });
  }
  const std::optional<Task> silent = board_->Take(now_);
  const std::optional<Task> speaks = board_->Take(now_);
  ASSERT_TRUE(silent.has_value() && speaks.has_value());
  EXPECT_TRUE(IsIdle());
  board_->Listed(*speaks, Offers(), now_);
  const std::optional<Task> next_list = board_->Take(now_);
  ASSERT_TRUE(next_list.has_value());
  EXPECT_FALSE(next_list->piece.has_value());
  const Task piece = Take();
  EXPECT_EQ(piece.source, speaks->source);
  // Who does not answer is asked again later, and the next one instead.
  board_->Listed(*silent, absl::DeadlineExceededError("no answer"), now_);
  const std::optional<Task> last = board_->Take(now_);
  ASSERT_TRUE(last.has_value() && !last->piece.has_value());
  EXPECT_EQ(last->source, 3u);
}

}  // namespace
}  // namespace caravan
