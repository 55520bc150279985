// The expert store against a plain model of it.

#include "worker/experts/expert_store.h"

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/experts/expert_store_testing.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

TEST_F(ExpertStoreTest, GivesEachExpertOnceWhateverItsSlots) {
  for (int slots = PackedToy::kChosen; slots <= PackedToy::kAllExperts; ++slots) {
    seed_ = static_cast<uint64_t>(slots);
    Rng rng(seed_);
    ExpertStore::Options options = Options();
    options.guesses = ExpertStore::Guesses::kAlways;
    const std::unique_ptr<ExpertStore> store = MakeStore(slots, options);
    int64_t needed = 0;
    int next_layer = RandomInt(rng, 1, PackedToy::kLayers);
    for (int turn = 0; turn < 60; ++turn) {
      const int layer = std::exchange(next_layer, RandomInt(rng, 1, PackedToy::kLayers));
      // One row, some, as many as touch nearly all; sometimes too many to be given out of order.
      const int rows = turn % 20 == 7 ? 600 : 1 << RandomInt(rng, 0, 5);
      const Choice choice(rng, rows, RandomInt(rng, PackedToy::kChosen, PackedToy::kExperts));
      needed += static_cast<int64_t>(choice.needed.size());
      ExpertBatches& batches = store->Visit(layer, choice.ids, choice.weights);
      // Guesses for the next visit, some of them right, in the midst of this one or after it.
      const Choice guess(rng, RandomInt(rng, 1, 3));
      const bool guesses = turn % 4 != 1;
      if (guesses && next_layer > layer && store->WantsGuess(next_layer)) {
        store->Guess(next_layer, guess.ids, guess.weights, absl::ZeroDuration());
      }
      const bool is_left = turn % 10 == 3;  // as a step that fails
      const auto taken = Take(batches, layer, is_left ? 1 : 1000);
      ASSERT_TRUE(taken.ok()) << taken.status();
      if (!is_left) {
        ASSERT_EQ(*taken, choice.needed) << slots << " slots, turn " << turn;
      }
      ASSERT_FALSE(HasFailure()) << slots << " slots, turn " << turn;
      if (guesses && next_layer <= layer && store->WantsGuess(next_layer)) {
        store->Guess(next_layer, guess.ids, guess.weights, absl::ZeroDuration());
      }
    }
    const ExpertStore::Counters counters = store->counters();
    EXPECT_EQ(counters.hits + counters.misses, needed);
    EXPECT_GE(counters.guesses, counters.guesses_used + counters.guesses_wasted);
    EXPECT_GE(counters.guessable, counters.guesses_used);
    EXPECT_LE(counters.bytes_wasted, counters.guesses_wasted * toy_->run_bytes());
    if (slots < PackedToy::kAllExperts) {
      EXPECT_GT(counters.guesses_used, 0) << slots << " slots";
    }
    EXPECT_EQ(counters.bytes_read, counters.reads * toy_->run_bytes());
    if (slots == PackedToy::kAllExperts) {
      EXPECT_EQ(counters.evictions, 0);
    }
  }
}

TEST_F(ExpertStoreTest, WhatIsThereIsGivenFirst) {
  HeldQueue* queue = nullptr;
  const std::unique_ptr<ExpertStore> store = MakeStore(16, HeldOptions(&queue));
  ASSERT_TRUE(VisitAll(*store, 1, Choice({3, 5, 7, 9})).ok());
  const Choice next({1, 5, 9, 11});
  queue->Hold();
  ExpertBatches& batches = store->Visit(1, next.ids, next.weights);
  const auto first = Take(batches, 1, 1);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(*first, (std::set<int32_t>{5, 9}));
  EXPECT_EQ(store->counters().hits, 2);
  EXPECT_EQ(store->counters().misses, 6);
  queue->LetGo();
  const auto rest = Take(batches, 1);
  ASSERT_TRUE(rest.ok());
  EXPECT_EQ(*rest, (std::set<int32_t>{1, 11}));
}

TEST_F(ExpertStoreTest, AllThatFitAreReadAtTheStart) {
  const std::unique_ptr<ExpertStore> store = MakeStore(PackedToy::kAllExperts);
  const int64_t total = PackedToy::kAllExperts * toy_->run_bytes();
  ASSERT_EQ(store->warm_bytes(), total);
  int64_t last = -1;
  const auto progress = [&](int64_t done, int64_t of) {
    EXPECT_GE(done, last);
    EXPECT_EQ(of, total);
    last = done;
    return true;
  };
  ASSERT_TRUE(store->Warm(progress).ok());
  EXPECT_EQ(last, total);
  Rng rng(1);
  for (const int layer : {1, 2, 3}) ASSERT_TRUE(VisitAll(*store, layer, Choice(rng, 64)).ok());
  EXPECT_EQ(store->counters().misses, 0);
  EXPECT_EQ(store->counters().reads, PackedToy::kAllExperts);

  const std::unique_ptr<ExpertStore> stopped = MakeStore(PackedToy::kAllExperts);
  EXPECT_EQ(stopped->Warm([](int64_t, int64_t) { return false; }).code(),
            absl::StatusCode::kCancelled);
  ASSERT_TRUE(VisitAll(*stopped, 1, Choice(rng, 64)).ok());

  // One that knows nothing has no idea which to read.
  const std::unique_ptr<ExpertStore> less = MakeStore(PackedToy::kAllExperts - 1);
  EXPECT_EQ(less->warm_bytes(), 0);
  ASSERT_TRUE(less->Warm([](int64_t, int64_t) { return false; }).ok());
  EXPECT_EQ(less->counters().reads, 0);
}

TEST_F(ExpertStoreTest, TheHottestAreReadAtTheStartInTheOrderOfTheirFiles) {
  std::vector<std::pair<std::string, int64_t>> reads;  // path and offset
  fault_ = [&](const FileRead& read) {
    reads.emplace_back(read.file->path(), read.offset);
    return absl::OkStatus();
  };
  // 12 of the cache, 4 through which experts pass.
  const std::unique_ptr<ExpertStore> store = MakeStore(16);
  ASSERT_EQ(store->cache().shape().num_slots, 12);
  // Of 20 that have a score those of even numbers, and four of layer 2, are the hottest.
  std::vector<std::pair<std::string, int64_t>> hottest;
  for (int expert = 0; expert < 16; ++expert) {
    store->cache().SetScore({1, expert}, expert % 2 == 0 ? 100 - expert : -expert);
    if (expert % 2 == 0) hottest.emplace_back(toy_->PathOf(1), toy_->OffsetOf(1, expert));
  }
  for (const int expert : {3, 9, 10, 15}) {
    store->cache().SetScore({2, expert}, 50);
    hottest.emplace_back(toy_->PathOf(2), toy_->OffsetOf(2, expert));
  }
  ASSERT_EQ(store->warm_bytes(), 12 * toy_->run_bytes());
  int64_t last = 0;
  const auto progress = [&](int64_t done, int64_t of) {
    EXPECT_EQ(of, 12 * toy_->run_bytes());
    last = done;
    return true;
  };
  ASSERT_TRUE(store->Warm(progress).ok());
  EXPECT_EQ(last, 12 * toy_->run_bytes());
  EXPECT_EQ(reads, hottest);
  EXPECT_EQ(store->step(), -1);
  ASSERT_TRUE(VisitAll(*store, 1, Choice({0, 2, 6, 14})).ok());
  ASSERT_TRUE(VisitAll(*store, 2, Choice({3, 9, 10, 15})).ok());
  EXPECT_EQ(store->counters().hits, 8);
  EXPECT_EQ(store->counters().misses, 0);
}

TEST_F(ExpertStoreTest, MayEndWhileItReads) {
  Rng rng(1);
  for (int turn = 0; turn < 20; ++turn) {
    const std::unique_ptr<ExpertStore> store = MakeStore(4 + 2 * turn);
    const Choice choice(rng, 64);
    ExpertBatches& batches = store->Visit(1, choice.ids, choice.weights);
    ASSERT_TRUE(Take(batches, 1, turn % 3).ok());
  }
}

TEST_F(ExpertStoreTest, RefusesABudgetThatHoldsNoTokensExperts) {
  const auto refused = ExpertStore::Create(toy_->config(), toy_->whole(), toy_->model(),
                                           PackedToy::kChosen * toy_->run_bytes() - 1, Options());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr(absl::StrCat(PackedToy::kChosen * toy_->run_bytes())));
}

}  // namespace
}  // namespace caravan
