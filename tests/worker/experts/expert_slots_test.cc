#include "worker/experts/expert_slots.h"

#include <memory>
#include <set>
#include <utility>

#include "gtest/gtest.h"
#include "tests/worker/experts/expert_testing.h"

namespace caravan {
namespace {

class ExpertSlotsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { toy_ = new PackedToy; }
  static void TearDownTestSuite() { delete toy_; }

  ExpertSlotsTest()
      : files_(*ExpertFiles::Open(toy_->config(), toy_->whole(), toy_->model())),
        slots_(*files_, /*num_slots=*/5, /*num_passed=*/2, *MakeCachePolicy("lru"), meter_) {}

  /// Reads an expert to a slot of the cache for a visit, which lets go of it.
  int Keep(ExpertKey key) {
    const int slot = slots_.Take(key, kAnyScore);
    slots_.Begin(slot, key, /*is_guess=*/false);
    slots_.End(slot);
    slots_.Unwant(slot);
    return slot;
  }

  static inline PackedToy* toy_ = nullptr;
  const std::unique_ptr<ExpertFiles> files_;
  ExpertMeter meter_;
  ExpertSlots slots_;
};

TEST_F(ExpertSlotsTest, WhatPassesIsForgottenWhenTheVisitLetsGo) {
  const ExpertKey key = {1, 7};
  const int slot = slots_.FindFreePassed();
  ASSERT_TRUE(slots_.IsPassed(slot));
  slots_.Begin(slot, key, /*is_guess=*/false);
  EXPECT_EQ(slots_.Find(key), slot);
  slots_.End(slot);
  EXPECT_EQ(slots_.Find(key), slot);
  slots_.Unwant(slot);
  EXPECT_EQ(slots_.Find(key), -1);
  EXPECT_EQ(slots_.FindFreePassed(), slot);
}

TEST_F(ExpertSlotsTest, WhatTheCacheKeepsStaysUntilItGivesWay) {
  for (const int expert : {1, 2, 3}) Keep({1, expert});
  EXPECT_FALSE(slots_.HasFreeCached());
  EXPECT_GE(slots_.Find({1, 1}), 0);
  Keep({1, 4});
  EXPECT_EQ(slots_.Find({1, 1}), -1);
  EXPECT_EQ(meter_.Read().evictions, 1);
}

TEST_F(ExpertSlotsTest, WhatEntersTheCacheKeepsItsFrame) {
  for (const int expert : {1, 2, 3}) Keep({1, expert});
  for (const bool is_read : {true, false}) {
    SCOPED_TRACE(is_read);
    const ExpertKey key = {2, is_read ? 1 : 2};
    const int passed = slots_.FindFreePassed();
    const int frame = slots_.FrameOf(passed);
    slots_.Begin(passed, key, /*is_guess=*/true);
    if (is_read) slots_.End(passed);
    slots_.Want(passed);
    const int cached = slots_.EnterCache(passed, kAnyScore);
    ASSERT_FALSE(slots_.IsPassed(cached));
    EXPECT_EQ(slots_.FrameOf(cached), frame);
    EXPECT_EQ(slots_.SlotOf(frame), cached);
    EXPECT_NE(slots_.FrameOf(passed), frame);
    EXPECT_EQ(slots_.SlotOf(slots_.FrameOf(passed)), passed);
    EXPECT_EQ(slots_.Find(key), cached);
    EXPECT_EQ(slots_.FindFreePassed(), passed);
    // As many holds as there are reasons: it may give way after these, and not before.
    if (!is_read) slots_.End(cached);
    slots_.Unwant(cached);
    EXPECT_EQ(slots_.Find(key), cached);
  }
  for (const int expert : {4, 5, 6}) EXPECT_GE(Keep({3, expert}), 0);
  EXPECT_EQ(slots_.Find({2, 1}), -1);
  EXPECT_EQ(slots_.Find({2, 2}), -1);
}

TEST_F(ExpertSlotsTest, ALostOneLeavesItsSlotFree) {
  const ExpertKey key = {1, 2};
  for (const bool is_ready : {false, true}) {
    const int slot = slots_.Take(key, kAnyScore);
    slots_.Begin(slot, key, /*is_guess=*/false);
    if (is_ready) slots_.End(slot);
    slots_.Lose(slot);
    EXPECT_EQ(slots_.Find(key), -1);
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(slots_.HasFreeCached());
  }
  for (const int expert : {1, 2, 3}) Keep({1, expert});
  EXPECT_EQ(meter_.Read().evictions, 0);
}

TEST_F(ExpertSlotsTest, CountsWhatBecomesOfGuesses) {
  const int used = slots_.FindFreePassed();
  slots_.Begin(used, {1, 1}, /*is_guess=*/true);
  const int wasted = slots_.FindFreePassed();
  slots_.Begin(wasted, {1, 2}, /*is_guess=*/true);
  slots_.Want(used);
  slots_.End(wasted);
  slots_.Lose(wasted);
  EXPECT_EQ(meter_.Read().bytes_wasted, toy_->run_bytes());
  // One that was not read cost nothing yet.
  const int taken_back = slots_.FindFreePassed();
  slots_.Begin(taken_back, {1, 3}, /*is_guess=*/true);
  slots_.Lose(taken_back);
  const ExpertCounters counters = meter_.Read();
  EXPECT_EQ(counters.guesses, 3);
  EXPECT_EQ(counters.guesses_used, 1);
  EXPECT_EQ(counters.guesses_wasted, 2);
  EXPECT_EQ(counters.bytes_wasted, toy_->run_bytes());
}

TEST_F(ExpertSlotsTest, WhatIsAdoptedLiesInItsFrameAndGivesWayAsAny) {
  // Frames of the cache's slots and of one through which experts pass.
  const std::pair<ExpertKey, int> adopted[] = {{{1, 4}, 4}, {{2, 9}, 0}, {{1, 5}, 2}};
  for (const auto& [key, frame] : adopted) slots_.Adopt(key, frame);
  EXPECT_FALSE(slots_.HasFreeCached());
  std::set<int> frames;
  for (int slot = 0; slot < slots_.size(); ++slot) {
    frames.insert(slots_.FrameOf(slot));
    EXPECT_EQ(slots_.SlotOf(slots_.FrameOf(slot)), slot);
  }
  EXPECT_EQ(frames.size(), 5u);
  for (const auto& [key, frame] : adopted) {
    const int slot = slots_.Find(key);
    ASSERT_GE(slot, 0);
    EXPECT_FALSE(slots_.IsPassed(slot));
    EXPECT_TRUE(slots_.IsReady(slot));
    EXPECT_EQ(slots_.FrameOf(slot), frame);
  }
  Keep({1, 7});
  EXPECT_EQ(slots_.Find({1, 4}), -1) << "of equal scores the first goes";
  EXPECT_EQ(meter_.Read().evictions, 1);
}

}  // namespace
}  // namespace caravan
