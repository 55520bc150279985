#include "worker/experts/expert_cache.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace caravan {
namespace {

constexpr ExpertCache::Shape kShape = {
    .first_layer = 3, .num_layers = 2, .experts_per_layer = 8, .num_slots = 3};

ExpertCache MakeCache(absl::string_view policy, const ExpertCache::Shape& shape = kShape) {
  return ExpertCache(shape, *MakeCachePolicy(policy));
}

/// Takes a slot and lets go of it at once.
std::optional<int> Bring(ExpertCache& cache, ExpertKey key) {
  const std::optional<int> slot = cache.Take(key);
  if (slot.has_value()) cache.Release(*slot);
  return slot;
}

TEST(ExpertCacheTest, GivesFreeSlotsFirst) {
  ExpertCache cache = MakeCache("lru");
  EXPECT_EQ(cache.Find({3, 0}), std::nullopt);
  std::vector<int> slots;
  for (int expert = 0; expert < 3; ++expert) {
    slots.push_back(cache.Take({3, expert}, kNoScore).value_or(-1));
  }
  for (int expert = 0; expert < 3; ++expert) {
    EXPECT_EQ(cache.Find({3, expert}), slots[static_cast<size_t>(expert)]);
  }
  std::sort(slots.begin(), slots.end());
  EXPECT_EQ(slots, (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(cache.Find({4, 0}), std::nullopt);  // of another layer
}

TEST(ExpertCacheTest, TheLowestScoreGivesWay) {
  ExpertCache cache = MakeCache("lru");
  for (int expert = 0; expert < 3; ++expert) {
    cache.Use({3, expert}, {.step = 10 - expert, .rows = 1, .weight = 1});
    Bring(cache, {3, expert});
  }
  const std::optional<int> slot = cache.Find({3, 2});
  EXPECT_EQ(cache.Take({4, 7}, 8), std::nullopt);
  EXPECT_EQ(cache.Find({3, 2}), slot);
  EXPECT_EQ(cache.Take({4, 7}, 8.5), slot);
  EXPECT_EQ(cache.Find({3, 2}), std::nullopt);
  EXPECT_EQ(cache.Find({4, 7}), slot);
}

/// Runs a step that uses these experts of both layers, and returns how many it found.
int RunStep(ExpertCache& cache, int64_t step, const std::vector<int>& experts) {
  int hits = 0;
  for (const int layer : {3, 4}) {
    cache.BeginVisit(step, static_cast<int>(experts.size()));
    for (const int expert : experts) {
      const double score = cache.Use({layer, expert}, {.step = step, .rows = 1, .weight = 1});
      if (cache.Find({layer, expert}).has_value()) {
        ++hits;
      } else if (const std::optional<int> slot = cache.Take({layer, expert}, score)) {
        cache.Release(*slot);
      }
    }
  }
  return hits;
}

TEST(ExpertCacheTest, AFixedSetStaysWhereStepsUseMoreThanThereAreSlots) {
  for (const absl::string_view policy : kCachePolicyNames) {
    ExpertCache cache = MakeCache(policy);
    RunStep(cache, 0, {0, 1});
    for (int64_t step = 1; step < 5; ++step) {
      EXPECT_EQ(RunStep(cache, step, {0, 1}), 3) << policy << ", step " << step;
    }
  }
}

TEST(ExpertCacheTest, WhatIsUsedMoreOftenEntersTheFixedSet) {
  ExpertCache cache = MakeCache("lfu");
  // Each step uses four experts, for three slots; those of 5 came only twice.
  for (int64_t step = 0; step < 2; ++step) RunStep(cache, step, {0, 5});
  for (int64_t step = 2; step < 6; ++step) RunStep(cache, step, {1, 2});
  for (const int layer : {3, 4}) EXPECT_EQ(cache.Find({layer, 5}), std::nullopt) << layer;
}

TEST(ExpertCacheTest, AVisitOfMoreThanHalfOfALayerPutsOutNothingOfEqualScore) {
  ExpertCache cache = MakeCache("lru");
  RunStep(cache, 0, {0});
  RunStep(cache, 1, {1});  // four uses of 0 and 1, so one gave way
  ASSERT_TRUE(cache.Find({4, 1}).has_value());
  RunStep(cache, 2, {2, 3, 4, 5, 6});
  EXPECT_TRUE(cache.Find({4, 1}).has_value());
}

TEST(ExpertCacheTest, StepsThatFitBringWhatTheyUse) {
  ExpertCache cache = MakeCache("lru");
  RunStep(cache, 0, {0});
  RunStep(cache, 1, {1});
  EXPECT_EQ(RunStep(cache, 2, {1}), 2);
}

TEST(ExpertCacheTest, OfEqualScoresTheSlotGivenLongestAgoGivesWay) {
  ExpertCache cache = MakeCache("lru");
  for (const int expert : {5, 1, 6}) Bring(cache, {3, expert});
  Bring(cache, {3, 0});
  EXPECT_EQ(cache.Find({3, 5}), std::nullopt);
  Bring(cache, {3, 2});
  EXPECT_EQ(cache.Find({3, 1}), std::nullopt);
}

TEST(ExpertCacheTest, WhatIsHeldDoesNotGiveWay) {
  ExpertCache cache = MakeCache("lru");
  std::vector<int> slots;
  for (int expert = 0; expert < 3; ++expert) slots.push_back(*cache.Take({3, expert}));
  EXPECT_EQ(cache.Take({3, 4}), std::nullopt);
  cache.Hold(slots[1]);
  cache.Release(slots[1]);
  EXPECT_EQ(cache.Take({3, 4}), std::nullopt);  // Take's own hold
  cache.Release(slots[1]);
  EXPECT_EQ(cache.Take({3, 4}), slots[1]);
  EXPECT_EQ(cache.Find({3, 1}), std::nullopt);
}

TEST(ExpertCacheTest, ADroppedSlotIsFreeAndTheScoreStays) {
  ExpertCache cache = MakeCache("lfu");
  cache.Use({3, 0}, {.step = 0, .rows = 4, .weight = 1});
  for (int expert = 0; expert < 2; ++expert) Bring(cache, {3, expert});
  const int slot = *cache.Take({3, 2});
  cache.Drop(slot);
  EXPECT_EQ(cache.Find({3, 2}), std::nullopt);
  EXPECT_EQ(cache.Take({3, 3}), slot);
  cache.Drop(*cache.Find({3, 3}));
  EXPECT_EQ(cache.score({3, 0}), 2);
  EXPECT_EQ(cache.score({3, 2}), kNoScore);
}

TEST(ExpertCacheTest, ScoresOfEarlierRunsCount) {
  ExpertCache cache = MakeCache("lfu");
  cache.SetScore({3, 0}, 5);
  cache.SetScore({3, 1}, -2);
  cache.SetScore({3, 2}, 5);
  for (int expert = 0; expert < 3; ++expert) Bring(cache, {3, expert});
  Bring(cache, {3, 3});
  EXPECT_EQ(cache.Find({3, 1}), std::nullopt);
}

TEST(ExpertCacheTest, ACacheWithoutSlotsHoldsNothing) {
  ExpertCache cache = MakeCache("lru", {0, 1, 4, 0});
  cache.Use({0, 1}, {.step = 1, .rows = 1, .weight = 1});
  EXPECT_EQ(cache.Take({0, 1}), std::nullopt);
}

/// The contract by maps: what lies where, since when, held how often.
class PlainCache {
 public:
  struct Entry {
    int holds = 0;
    int64_t given = 0;
  };

  explicit PlainCache(int num_slots) : num_slots_(num_slots) {}

  double Score(ExpertKey key) const {
    const auto it = scores_.find(key);
    return it == scores_.end() ? kNoScore : it->second;
  }
  void SetScore(ExpertKey key, double score) { scores_[key] = score; }
  bool Has(ExpertKey key) const { return entries_.count(key) > 0; }
  bool Full() const { return static_cast<int>(entries_.size()) == num_slots_; }
  std::optional<ExpertKey> Victim() const {
    std::optional<ExpertKey> victim;
    for (const auto& [key, entry] : entries_) {
      if (entry.holds > 0) continue;
      if (!victim.has_value() ||
          std::pair(Score(key), entry.given) < std::pair(Score(*victim), Given(*victim))) {
        victim = key;
      }
    }
    return victim;
  }
  bool Take(ExpertKey key, double score) {
    if (Full()) {
      const std::optional<ExpertKey> victim = Victim();
      if (!victim.has_value() || Score(*victim) >= score) return false;
      entries_.erase(*victim);
    }
    entries_[key] = {1, next_++};
    return true;
  }
  void Drop(ExpertKey key) { entries_.erase(key); }
  int& Holds(ExpertKey key) { return entries_.at(key).holds; }

 private:
  int64_t Given(ExpertKey key) const { return entries_.at(key).given; }

  const int num_slots_;
  std::map<ExpertKey, Entry> entries_;
  std::map<ExpertKey, double> scores_;
  int64_t next_ = 0;
};

TEST(ExpertCacheTest, DoesAsAPlainModelDoes) {
  for (const absl::string_view policy : kCachePolicyNames) {
    for (const unsigned seed : {1u, 2u, 3u}) {
      SCOPED_TRACE(testing::Message() << policy << ", seed " << seed);
      const ExpertCache::Shape shape = {1, 3, 6, 5};
      ExpertCache cache = MakeCache(policy, shape);
      PlainCache plain(shape.num_slots);
      std::mt19937 random(seed);
      for (int64_t step = 0; step < 4000; ++step) {
        const ExpertKey key = {static_cast<int32_t>(1 + random() % 3),
                               static_cast<int32_t>(random() % 6)};
        const std::optional<int> slot = cache.Find(key);
        ASSERT_EQ(slot.has_value(), plain.Has(key)) << step;
        switch (random() % 6) {
          case 0:
          case 1: {
            // Few steps and weights, so that scores meet.
            const ExpertUse use = {step / 16, static_cast<int64_t>(1 + random() % 2),
                                   0.5f * static_cast<float>(1 + random() % 2)};
            cache.Use(key, use);
            plain.SetScore(key, cache.policy().AfterUse(plain.Score(key), use));
            break;
          }
          case 2:
            if (!slot.has_value()) {
              // Below its own score, another's, or any.
              const ExpertKey other = {static_cast<int32_t>(1 + random() % 3),
                                       static_cast<int32_t>(random() % 6)};
              const double below = random() % 3 == 0 ? 1e300 : plain.Score(other);
              ASSERT_EQ(cache.Take(key, below).has_value(), plain.Take(key, below)) << step;
            }
            break;
          case 3:
            if (slot.has_value()) {
              cache.Hold(*slot);
              ++plain.Holds(key);
            }
            break;
          case 4:
            if (slot.has_value() && plain.Holds(key) > 0) {
              cache.Release(*slot);
              --plain.Holds(key);
            }
            break;
          case 5:
            if (slot.has_value() && plain.Holds(key) == 1 && random() % 4 == 0) {
              cache.Drop(*slot);
              plain.Drop(key);
            }
            break;
        }
        ASSERT_EQ(cache.score(key), plain.Score(key)) << step;
      }
    }
  }
}

/// One of layers [4, 7) goes on where one of [3, 6) ended: both have 4 and 5.
TEST(ExpertCacheTest, AnotherStagesCacheGoesOnFromWhatWasLearned) {
  constexpr ExpertCache::Shape kFormer = {
      .first_layer = 3, .num_layers = 3, .experts_per_layer = 8, .num_slots = 24};
  constexpr ExpertCache::Shape kNext = {
      .first_layer = 4, .num_layers = 3, .experts_per_layer = 8, .num_slots = 6};
  for (const absl::string_view policy : kCachePolicyNames) {
    std::mt19937_64 rng(1);
    ExpertCache former = MakeCache(policy, kFormer);
    constexpr int64_t kSteps = 40;
    const auto use = [&](ExpertCache& cache, ExpertKey key, int64_t step, int64_t rows) {
      cache.Use(key, {.step = step, .rows = rows, .weight = 0.5f * static_cast<float>(rows)});
    };
    for (int64_t step = 0; step < kSteps; ++step) {
      for (int layer = 3; layer < 6; ++layer) {
        const int expert = static_cast<int>(rng() % 7);  // 7 is never used
        use(former, {layer, expert}, step, 1 + static_cast<int64_t>(rng() % 3));
        if (!former.Find({layer, expert}).has_value()) Bring(former, {layer, expert});
      }
    }
    ExpertCache next = MakeCache(policy, kNext);
    next.Continue(former.History(kSteps - 1));
    EXPECT_EQ(next.score({4, 7}), kNoScore);
    EXPECT_EQ(next.score({6, 0}), kNoScore) << "it was not there";
    for (const ExpertKey key : former.InOrder()) {
      if (key.layer >= 4 && std::ssize(next.InOrder()) < 6) Bring(next, key);
    }
    // The same further uses leave the same differences, so the same experts give way.
    for (int64_t step = 0; step < 20; ++step) {
      for (int layer = 4; layer < 6; ++layer) {
        const ExpertKey key = {layer, static_cast<int>(rng() % 7)};
        use(former, key, kSteps + step, 2);
        use(next, key, step, 2);
      }
    }
    const double shift = former.score({4, 0}) - next.score({4, 0});
    for (int layer = 4; layer < 6; ++layer) {
      for (int expert = 0; expert < 7; ++expert) {
        const ExpertKey key = {layer, expert};
        ASSERT_EQ(former.score(key) == kNoScore, next.score(key) == kNoScore) << policy;
        if (next.score(key) == kNoScore) continue;
        EXPECT_NEAR(former.score(key) - next.score(key), shift, 1e-9) << policy;
      }
    }
  }
}

TEST(ExpertCacheTest, WhatAnotherPolicyLearnedIsOfNoUse) {
  ExpertCache former = MakeCache("lru");
  RunStep(former, 0, {0, 1});
  ExpertCache next = MakeCache("lfu");
  next.Continue(former.History(0));
  EXPECT_EQ(next.score({3, 0}), kNoScore);
}

TEST(ExpertCacheTest, TheOrderIsThatInWhichTheyGiveWay) {
  ExpertCache cache = MakeCache("lru");
  const ExpertKey kept[] = {{3, 5}, {4, 1}, {3, 2}};
  for (const ExpertKey key : kept) Bring(cache, key);  // of equal scores
  cache.Use({3, 5}, {.step = 0, .rows = 1, .weight = 1});
  const std::vector<ExpertKey> order = cache.InOrder();
  ASSERT_EQ(order.size(), 3u);
  EXPECT_EQ(order.back(), (ExpertKey{3, 5}));
  for (int i = 0; i < 2; ++i) {
    Bring(cache, {4, 6 + i});
    cache.SetScore({4, 6 + i}, 100);
    EXPECT_EQ(cache.Find(order[static_cast<size_t>(i)]), std::nullopt);
  }
  EXPECT_TRUE(cache.Find({3, 5}).has_value());
}

TEST(ExpertCacheTest, WhereStepsOutgrewTheFormerCacheTheFirstStepKeepsTheFixedSet) {
  for (const absl::string_view policy : kCachePolicyNames) {
    ExpertCache former = MakeCache(policy);
    for (int64_t step = 0; step < 3; ++step) RunStep(former, step, {0, 1, 2});
    ExpertCache next = MakeCache(policy);
    next.Continue(former.History(2));
    for (const ExpertKey key : former.InOrder()) Bring(next, key);
    EXPECT_EQ(RunStep(next, 0, {0, 1, 2}), 3) << policy;
    // It knew nothing: what comes first is put out before it is needed again.
    ExpertCache fresh = MakeCache(policy);
    for (const ExpertKey key : former.InOrder()) Bring(fresh, key);
    EXPECT_LT(RunStep(fresh, 0, {0, 1, 2}), 3) << policy;
  }
}

}  // namespace
}  // namespace caravan
