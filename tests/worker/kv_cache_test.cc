#include "worker/kv_cache.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace caravan {
namespace {

constexpr int kLayers = 2;
constexpr int64_t kWidth = 3;
constexpr int64_t kBlockTokens = 4;
constexpr int64_t kBlockBytes = kLayers * kWidth * kBlockTokens * 4;

std::unique_ptr<KvCache> MakeCache(int64_t blocks) {
  KvCache::Options options;
  options.num_layers = kLayers;
  options.width = kWidth;
  options.block_tokens = kBlockTokens;
  options.budget_bytes = blocks * kBlockBytes + kBlockBytes - 1;  // a part of a block is none
  return *KvCache::Create(options);
}

std::vector<float*> Blocks(const KvCache& cache, uint64_t sequence, int layer) {
  std::vector<float*> blocks;
  cache.AppendLayerBlocks(sequence, layer, blocks);
  return blocks;
}

TEST(KvCacheTest, TakesWholeBlocksFromItsBudget) {
  EXPECT_EQ(MakeCache(5)->num_blocks(), 5);
  KvCache::Options options;
  options.num_layers = kLayers;
  options.width = kWidth;
  options.block_tokens = kBlockTokens;
  options.budget_bytes = kBlockBytes - 1;
  EXPECT_EQ(KvCache::Create(options).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(KvCacheTest, GrowsASequenceBlockByBlock) {
  const auto cache = MakeCache(3);
  ASSERT_TRUE(cache->Append(7, 0, 4).ok());
  EXPECT_EQ(cache->free_blocks(), 2);
  ASSERT_TRUE(cache->Append(7, 4, 1).ok());
  EXPECT_EQ(cache->free_blocks(), 1);
  ASSERT_TRUE(cache->Append(7, 5, 3).ok());
  EXPECT_EQ(cache->free_blocks(), 1);
  EXPECT_EQ(Blocks(*cache, 7, 0).size(), 2u);
  cache->Free(7);
  EXPECT_EQ(cache->free_blocks(), 3);
  cache->Free(7);  // unknown by now
  EXPECT_EQ(cache->free_blocks(), 3);
}

TEST(KvCacheTest, RefusesAGapAndChangesNothing) {
  const auto cache = MakeCache(3);
  EXPECT_EQ(cache->Append(1, 2, 1).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(cache->Append(1, 0, 2).ok());
  EXPECT_EQ(cache->Append(1, 1, 1).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cache->Append(1, 3, 1).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(cache->Append(1, 2, 1).ok());
}

TEST(KvCacheTest, RefusesMoreThanItHasAndChangesNothing) {
  const auto cache = MakeCache(2);
  ASSERT_TRUE(cache->Append(1, 0, 4).ok());
  EXPECT_EQ(cache->Append(2, 0, 5).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(cache->free_blocks(), 1);
  EXPECT_TRUE(cache->Append(2, 0, 4).ok());
}

TEST(KvCacheTest, NoPlaceBelongsToTwo) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto cache = MakeCache(20);
  std::map<uint64_t, int64_t> lengths;
  for (int i = 0; i < 2000; ++i) {
    const uint64_t id = random() % 6;
    if (random() % 4 == 0) {
      cache->Free(id);
      lengths.erase(id);
    } else {
      const int64_t tokens = 1 + random() % 9;
      if (cache->Append(id, lengths[id], tokens).ok()) lengths[id] += tokens;
      if (lengths[id] == 0) lengths.erase(id);
    }
    std::set<const float*> places;
    size_t expected = 0;
    for (const auto& [sequence, length] : lengths) {
      const size_t blocks = static_cast<size_t>((length + kBlockTokens - 1) / kBlockTokens);
      for (int layer = 0; layer < kLayers; ++layer) {
        const std::vector<float*> of_layer = Blocks(*cache, sequence, layer);
        ASSERT_EQ(of_layer.size(), blocks);
        expected += blocks;
        places.insert(of_layer.begin(), of_layer.end());
        // All of a block is writable memory of its own.
        for (float* block : of_layer) std::fill_n(block, kBlockTokens * kWidth, 1.0f);
      }
    }
    ASSERT_EQ(places.size(), expected);
    ASSERT_EQ(cache->free_blocks(), 20 - static_cast<int64_t>(expected) / kLayers);
  }
}

}  // namespace
}  // namespace caravan
