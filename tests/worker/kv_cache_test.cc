#include "worker/kv_cache.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "gtest/gtest.h"

namespace caravan {
namespace {

constexpr int kLayers = 2;
constexpr int64_t kWidth = 3;
constexpr int64_t kBlockTokens = 4;
constexpr int64_t kLayerFloats = kWidth * kBlockTokens;
constexpr int64_t kBlockBytes = kLayers * kLayerFloats * 4;

absl::StatusOr<std::unique_ptr<KvCache>> Create(int64_t budget_bytes) {
  KvCache::Options options;
  options.num_layers = kLayers;
  options.width = kWidth;
  options.block_tokens = kBlockTokens;
  options.budget_bytes = budget_bytes;
  return KvCache::Create(options);
}

void Fill(const KvCache& cache, int64_t block, int layer, float value) {
  std::fill_n(reinterpret_cast<float*>(cache.LayerOfBlock(block, layer)), kLayerFloats, value);
}

/// What all of the layer holds; NaN where it differs.
float Value(const KvCache& cache, int64_t block, int layer) {
  const auto* const begin = reinterpret_cast<const float*>(cache.LayerOfBlock(block, layer));
  const bool same = std::all_of(begin, begin + kLayerFloats, [&](float x) { return x == *begin; });
  return same ? *begin : std::numeric_limits<float>::quiet_NaN();
}

TEST(KvCacheTest, TakesWholeBlocksFromItsBudget) {
  EXPECT_EQ((*Create(5 * kBlockBytes + kBlockBytes - 1))->num_blocks(), 5);
  EXPECT_EQ(Create(kBlockBytes - 1).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(KvCacheTest, ABlockTakesWhatItsFormatTakes) {
  KvCache::Options options;
  options.num_layers = 3;
  options.width = 96;
  options.block_tokens = 64;
  for (const auto& [dtype, row_bytes] :
       {std::pair{DType::kF32, 384}, {DType::kF16, 192}, {DType::kQ8_0, 3 * 34}}) {
    options.dtype = dtype;
    options.budget_bytes = int64_t{5} * 3 * 64 * row_bytes;
    const auto cache = *KvCache::Create(options);
    EXPECT_EQ(cache->num_blocks(), 5);
    EXPECT_EQ(cache->layout().dtype, dtype);
    EXPECT_EQ(cache->LayerOfBlock(2, 1) - cache->LayerOfBlock(0, 0), 7 * 64 * row_bytes);
    *cache->LayerOfBlock(4, 2) = std::byte{7};
    ASSERT_TRUE(cache->CopyBlock(4, 1).ok());
    EXPECT_EQ(*cache->LayerOfBlock(1, 2), std::byte{7});
    --options.budget_bytes;
    EXPECT_EQ((*KvCache::Create(options))->num_blocks(), 4);
  }
}

TEST(KvCacheTest, EveryLayerOfEveryBlockHasAPlaceOfItsOwn) {
  const auto cache = *Create(6 * kBlockBytes);
  for (int block = 0; block < 6; ++block) {
    for (int layer = 0; layer < kLayers; ++layer) {
      Fill(*cache, block, layer, static_cast<float>(10 * block + layer));
    }
  }
  for (int block = 0; block < 6; ++block) {
    for (int layer = 0; layer < kLayers; ++layer) {
      EXPECT_EQ(Value(*cache, block, layer), static_cast<float>(10 * block + layer));
    }
  }
}

TEST(KvCacheTest, CopiesAllLayersOfABlockAndNothingElse) {
  const auto cache = *Create(3 * kBlockBytes);
  for (int block = 0; block < 3; ++block) {
    for (int layer = 0; layer < kLayers; ++layer) {
      Fill(*cache, block, layer, static_cast<float>(10 * block + layer));
    }
  }
  ASSERT_TRUE(cache->CopyBlock(2, 0).ok());
  ASSERT_TRUE(cache->CopyBlock(1, 1).ok());
  const float expected[3][kLayers] = {{20, 21}, {10, 11}, {20, 21}};
  for (int block = 0; block < 3; ++block) {
    for (int layer = 0; layer < kLayers; ++layer) {
      EXPECT_EQ(Value(*cache, block, layer), expected[block][layer]) << block << " " << layer;
    }
  }
}

}  // namespace
}  // namespace caravan
