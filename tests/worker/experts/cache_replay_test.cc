#include "worker/experts/cache_replay.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace caravan {
namespace {

using Ids = std::vector<int32_t>;

ExpertCache MakeCache(absl::string_view policy, ExpertCache::Shape shape, int num_slots) {
  shape.num_slots = num_slots;
  return ExpertCache(shape, *MakeCachePolicy(policy));
}

void Visit(CacheReplay& replay, int layer, int64_t rows, const Ids& ids) {
  replay.OnRouting(layer, rows, ids, std::vector<float>(ids.size(), 0.5f));
}

TEST(CacheReplayTest, CountsTokensUsesAndHits) {
  CacheReplay replay({.first_layer = 3, .num_layers = 2, .experts_per_layer = 4, .num_slots = 0});
  Visit(replay, 3, 2, {0, 1, 0, 2});
  Visit(replay, 4, 2, {0, 1, 0, 1});
  Visit(replay, 3, 1, {0, 3});
  Visit(replay, 4, 1, {1, 2});
  const Ids all(34, 1);
  Visit(replay, 3, 17, all);
  ExpertCache cache = MakeCache("lru", replay.shape(), 8);
  const CacheReplay::Result result = replay.Run(cache);
  EXPECT_EQ(result.decode.tokens, 3);
  EXPECT_EQ(result.decode.uses, 3 + 2 + 2 + 2);
  EXPECT_EQ(result.decode.hits, 1 + 1);
  EXPECT_EQ(result.prompt.tokens, 17);
  EXPECT_EQ(result.prompt.uses, 1);
  EXPECT_EQ(result.prompt.hits, 1);
  EXPECT_EQ(result.reads(), 7);
}

// The classic case against recency: one more than fits, in turns.
TEST(CacheReplayTest, AScanDefeatsLruAndNotTheOptimum) {
  CacheReplay replay({.first_layer = 0, .num_layers = 1, .experts_per_layer = 3, .num_slots = 0});
  for (int i = 0; i < 30; ++i) Visit(replay, 0, 1, {i % 3});
  ExpertCache lru = MakeCache("lru", replay.shape(), 2);
  EXPECT_EQ(replay.Run(lru).decode.hits, 0);
  // 0 and 1 stay, 2 is read each time; or the like.
  EXPECT_EQ(replay.RunOptimum(2).reads(), 3 + 9);
  EXPECT_EQ(replay.RunOptimum(3).reads(), 3);
  EXPECT_EQ(replay.RunOptimum(0).reads(), 30);
}

TEST(CacheReplayTest, WhatAVisitFindsInMemoryStaysUntilItEnds) {
  CacheReplay replay({.first_layer = 0, .num_layers = 1, .experts_per_layer = 4, .num_slots = 0});
  Visit(replay, 0, 1, {3});
  Visit(replay, 0, 1, {0, 1, 3});  // 3 is hit, whatever 0 and 1 put out
  ExpertCache lru = MakeCache("lru", replay.shape(), 1);
  EXPECT_EQ(replay.Run(lru).decode.hits, 1);
  EXPECT_EQ(replay.RunOptimum(1).decode.hits, 1);
}

/// The fewest reads, by trying all that could stay after each visit.
int64_t FewestReads(const std::vector<std::set<int>>& visits, int num_slots) {
  std::map<std::set<int>, int64_t> reads = {{{}, 0}};
  for (const std::set<int>& visit : visits) {
    std::map<std::set<int>, int64_t> next;
    for (const auto& [kept, so_far] : reads) {
      std::vector<int> there(kept.begin(), kept.end());
      int64_t missing = 0;
      for (const int expert : visit) {
        if (kept.count(expert) > 0) continue;
        ++missing;
        there.push_back(expert);
      }
      for (uint32_t mask = 0; mask < 1u << there.size(); ++mask) {
        std::set<int> stay;
        for (size_t i = 0; i < there.size(); ++i) {
          if ((mask >> i & 1u) != 0) stay.insert(there[i]);
        }
        if (static_cast<int>(stay.size()) > num_slots) continue;
        const auto [it, fresh] = next.emplace(stay, so_far + missing);
        if (!fresh) it->second = std::min(it->second, so_far + missing);
      }
    }
    reads = std::move(next);
  }
  int64_t fewest = reads.begin()->second;
  for (const auto& [kept, total] : reads) fewest = std::min(fewest, total);
  return fewest;
}

TEST(CacheReplayTest, NothingReadsLessThanTheOptimum) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    CacheReplay replay({.first_layer = 0, .num_layers = 2, .experts_per_layer = 3, .num_slots = 0});
    std::vector<std::set<int>> visits;
    for (int i = 0; i < 24; ++i) {
      const int layer = i % 2;
      Ids ids;
      std::set<int>& visit = visits.emplace_back();
      for (int32_t expert = 0; expert < 3; ++expert) {
        if (random() % 2 == 0) continue;
        ids.push_back(expert);
        visit.insert(layer * 3 + expert);
      }
      Visit(replay, layer, 1, ids);
    }
    for (const int slots : {1, 2, 4}) {
      const int64_t optimum = replay.RunOptimum(slots).reads();
      EXPECT_EQ(optimum, FewestReads(visits, slots)) << slots;
      for (const absl::string_view policy : kCachePolicyNames) {
        ExpertCache cache = MakeCache(policy, replay.shape(), slots);
        EXPECT_GE(replay.Run(cache).reads(), optimum) << policy;
      }
    }
  }
}

}  // namespace
}  // namespace caravan
