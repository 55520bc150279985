// What the expert store reads before it is needed.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/experts/expert_store_testing.h"
#include "worker/experts/expert_store.h"

namespace caravan {
namespace {

class GuessedExpertsTest : public ExpertStoreTest {};

TEST_F(GuessedExpertsTest, AScanKeepsWhatItHas) {
  constexpr int kSlots = 24;  // of which experts pass through 6
  for (const char* policy : {"lru", "lfu", "router"}) {
    for (const int rows : {64, 600}) {
      ExpertStore::Options options = Options();
      options.policy = policy;
      const std::unique_ptr<ExpertStore> store = MakeStore(kSlots, options);
      Rng rng(3);
      constexpr int kPasses = 10;
      for (int pass = 0; pass < kPasses; ++pass) {
        for (const int layer : {1, 2, 3}) {
          ASSERT_TRUE(VisitAll(*store, layer, Choice(rng, rows)).ok());
        }
      }
      const ExpertStore::Counters counters = store->counters();
      // Each pass but the first finds what lies in the cache, or nearly so; without guesses it
      // would read all others.
      EXPECT_GE(counters.hits, (kPasses - 1) * 15) << policy;
      EXPECT_LE(counters.reads, kPasses * (PackedToy::kAllExperts - 15) + kSlots) << policy;
      EXPECT_GT(counters.guesses_used, kPasses) << policy;
      EXPECT_LE(counters.guesses_wasted, kPasses) << policy;
    }
  }
}

TEST_F(GuessedExpertsTest, WhatWasGuessedRightIsReadOnceAndStays) {
  for (const bool cache_is_full : {false, true}) {
    ExpertStore::Options options = Options();
    options.guesses = ExpertStore::Guesses::kAlways;
    options.policy = "lru";
    const std::unique_ptr<ExpertStore> store = MakeStore(16, options);  // 12 of them the cache's
    if (cache_is_full) {
      for (const int e : {0, 4, 8}) {
        ASSERT_TRUE(VisitAll(*store, 3, Choice({e, e + 1, e + 2, e + 3})).ok());
      }
    }
    const ExpertStore::Counters before = store->counters();
    const Choice first({0, 1, 2, 3});
    ExpertBatches& batches = store->Visit(1, first.ids, first.weights);
    ASSERT_TRUE(Guess(*store, 2, {4, 5, 6, 7}));
    ASSERT_TRUE(Take(batches, 1).ok());
    ASSERT_TRUE(VisitAll(*store, 2, Choice({5, 6, 7, 8})).ok());
    ASSERT_TRUE(VisitAll(*store, 1, first).ok());
    ASSERT_TRUE(VisitAll(*store, 2, Choice({5, 6, 7, 8})).ok());
    const ExpertStore::Counters counters = store->counters();
    EXPECT_EQ(counters.guesses, 4);
    EXPECT_EQ(counters.guesses_used, 3);
    EXPECT_EQ(counters.guessable, 4);  // nobody guessed 8
    // What is in the way is dropped; in a cache with room it stays, and may be used yet.
    EXPECT_EQ(counters.guesses_wasted, cache_is_full ? 1 : 0);
    EXPECT_LE(counters.reads - before.reads, 9);  // the wrong one may have been taken back
    EXPECT_GE(counters.reads - before.reads, 8);
    EXPECT_EQ(counters.hits - before.hits + counters.misses - before.misses, 16);
    EXPECT_GE(counters.hits - before.hits, 8) << "what a guess brought did not stay";
  }
}

TEST_F(GuessedExpertsTest, GuessesAreReadAfterWhatIsNeededAndPutOutNothing) {
  std::vector<std::pair<std::string, int64_t>> reads;
  fault_ = [&](const FileRead& read) {
    reads.emplace_back(read.file->path(), read.offset);
    return absl::OkStatus();
  };
  const auto place = [](int layer, int expert) {
    return std::pair(toy_->PathOf(layer), toy_->OffsetOf(layer, expert));
  };
  ExpertStore::Options options = Options();
  options.guesses = ExpertStore::Guesses::kAlways;
  const std::unique_ptr<ExpertStore> store = MakeStore(8, options);  // 6 of them the cache's
  ASSERT_TRUE(VisitAll(*store, 3, Choice({0, 1, 2, 3})).ok());
  ASSERT_TRUE(VisitAll(*store, 3, Choice({2, 3, 4, 5})).ok());
  reads.clear();
  const int64_t evictions = store->counters().evictions;
  const Choice needed({9, 10, 11, 12});
  ExpertBatches& batches = store->Visit(1, needed.ids, needed.weights);
  ASSERT_TRUE(Guess(*store, 2, {4, 5, 6, 7}));
  ASSERT_TRUE(Take(batches, 1).ok());
  ASSERT_EQ(reads.size(), 6u);  // guesses have two slots
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(reads[i], i < 4 ? place(1, 9 + static_cast<int>(i)) : place(2, static_cast<int>(i)))
        << i;
  }
  EXPECT_EQ(store->counters().evictions, evictions + 4);
}

TEST_F(GuessedExpertsTest, GuessesAreWantedByWholeStepsUntilTheyAreSeenToPay) {
  const std::unique_ptr<ExpertStore> store = MakeStore(8);
  int guessed = 0;
  for (int step = 0; step < 10; ++step) {
    const bool guesses = store->WantsGuess(1);
    guessed += guesses ? 1 : 0;
    for (const int layer : {1, 2, 3}) {
      // Each visit brings something in: the last one's experts are others.
      const int first = (step * 4 + layer) % 12;
      const Choice choice({first, first + 1, first + 2, first + 3});
      EXPECT_EQ(store->WantsGuess(layer), guesses) << step;
      ASSERT_TRUE(VisitAll(*store, layer, choice).ok());
    }
  }
  EXPECT_GT(guessed, 0);
  EXPECT_LT(guessed, 10);
}

TEST_F(GuessedExpertsTest, GuessesAreNotWantedWhereTheyAreOfNoUse) {
  ExpertStore::Options options = Options();
  options.guesses = ExpertStore::Guesses::kNever;
  EXPECT_FALSE(MakeStore(16, options)->WantsGuess(1));
  options.guesses = ExpertStore::Guesses::kAlways;
  EXPECT_FALSE(MakeStore(PackedToy::kAllExperts, options)->WantsGuess(1));
  // In a scan the store knows what comes.
  const std::unique_ptr<ExpertStore> store = MakeStore(16, options);
  EXPECT_TRUE(store->WantsGuess(1));
  Rng rng(1);
  ASSERT_TRUE(VisitAll(*store, 1, Choice(rng, 64)).ok());
  EXPECT_FALSE(store->WantsGuess(2));
  EXPECT_TRUE(store->WantsGuess(1));  // of the next step
}

}  // namespace
}  // namespace caravan
