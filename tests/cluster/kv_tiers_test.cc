#include "cluster/kv_tiers.h"

#include <random>

#include "gtest/gtest.h"

namespace caravan {
namespace {

int64_t MemoryOf(const KvBlockShape& shape, const KvTiers& tiers) {
  return tiers.in_memory * shape.block_bytes() + tiers.on_disk * shape.memory_of_disk_block();
}

TEST(KvTiersTest, ABlockOnDiskTakesTheMemoryOfTwoLayers) {
  // Of R1 in 16 bits: 18 pages a layer. 100 blocks would fit memory.
  const KvBlockShape shape = {8, 64 * 576 * 2};
  const int64_t memory = 100 * shape.block_bytes();
  const KvTiers tiers = SplitKvBlocks(shape, memory, 200 * shape.disk_block_bytes());
  EXPECT_EQ(tiers.on_disk, 200);
  EXPECT_EQ(tiers.in_memory, 50);
  // However large the disk, memory bounds what can be used of it.
  EXPECT_EQ(SplitKvBlocks(shape, memory, int64_t{1} << 50).on_disk, 400);
  EXPECT_EQ(SplitKvBlocks(shape, memory, int64_t{1} << 50).in_memory, 0);
}

TEST(KvTiersTest, StagesOfFewLayersLeaveNothingOnDisk) {
  for (const int layers : {1, 2}) {
    const KvBlockShape shape = {layers, 4096};
    const KvTiers tiers = SplitKvBlocks(shape, 10 * shape.block_bytes(), int64_t{1} << 40);
    EXPECT_EQ(tiers.in_memory, 10) << layers;
    EXPECT_EQ(tiers.on_disk, 0) << layers;
    EXPECT_EQ(KvDiskFor(shape, 10 * shape.block_bytes(), int64_t{1} << 40, 20), 0) << layers;
  }
}

TEST(KvTiersTest, ALayerOnDiskTakesWholePages) {
  const KvBlockShape shape = {4, 5000};
  EXPECT_EQ(shape.block_bytes(), 20000);
  EXPECT_EQ(shape.disk_layer_bytes(), 8192);
  EXPECT_EQ(shape.disk_block_bytes(), 4 * 8192);
}

TEST(KvTiersTest, StaysWithinBothBudgetsAndNeverGivesLessThanMemoryAlone) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    std::mt19937_64 rng(seed);
    const auto random = [&](int64_t low, int64_t high) {
      return std::uniform_int_distribution<int64_t>(low, high)(rng);
    };
    const KvBlockShape shape = {static_cast<int>(random(1, 20)), random(1, 40000)};
    const int64_t memory = random(0, 60 * shape.block_bytes());
    const int64_t disk = random(0, 100 * shape.disk_block_bytes());
    const KvTiers tiers = SplitKvBlocks(shape, memory, disk);
    EXPECT_LE(MemoryOf(shape, tiers), memory) << "seed " << seed;
    EXPECT_LE(tiers.on_disk * shape.disk_block_bytes(), disk) << "seed " << seed;
    EXPECT_GE(tiers.blocks(), memory / shape.block_bytes()) << "seed " << seed;

    // The least disk, found by trying each number of blocks there.
    const int64_t wanted = random(0, 200);
    int64_t least = 0;
    int64_t most_blocks = memory / shape.block_bytes();
    for (int64_t n = 0; n * shape.disk_block_bytes() <= disk; ++n) {
      if (most_blocks >= wanted) break;
      const int64_t blocks = SplitKvBlocks(shape, memory, n * shape.disk_block_bytes()).blocks();
      if (blocks > most_blocks) {
        most_blocks = blocks;
        least = n;
      }
    }
    const int64_t taken = KvDiskFor(shape, memory, disk, wanted);
    EXPECT_EQ(taken, least * shape.disk_block_bytes()) << "seed " << seed;
    EXPECT_EQ(SplitKvBlocks(shape, memory, taken).blocks(), most_blocks) << "seed " << seed;
  }
}

}  // namespace
}  // namespace caravan
