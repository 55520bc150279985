#include "kernels/cpu/tile_ops.h"

#include <cmath>

#include "gmock/gmock.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

std::vector<const TileOps*> TestedTables() {
  std::vector<const TileOps*> tables;
  for (const CpuIsa isa : TestedIsas()) tables.push_back(*TileOpsFor(isa));
  return tables;
}

std::vector<ActivationBlock> Quantized(const TileOps& ops, const std::vector<float>& x) {
  std::vector<ActivationBlock> blocks(x.size() / kActivationBlock);
  ops.quantize(x.data(), static_cast<int64_t>(x.size()), blocks.data());
  return blocks;
}

TEST(TileOpsTest, QuantizesToWithinHalfAScale) {
  for (const TileOps* ops : TestedTables()) {
    for (const int max_exponent : {-140, -120, 0, 127}) {
      for (uint64_t seed = 0; seed < 10; ++seed) {
        Rng rng(seed);
        const std::vector<float> x = RandomWideFloats(rng, 8 * 32, max_exponent);
        const std::vector<ActivationBlock> blocks = Quantized(*ops, x);
        for (size_t i = 0; i < x.size(); ++i) {
          const ActivationBlock& block = blocks[i / 32];
          ASSERT_TRUE(std::isfinite(block.scale));
          ASSERT_GE(block.codes[i % 32], -127);
          const double scale = block.scale;
          // The quotient, of at most 127, is itself rounded before it is rounded to an integer.
          ASSERT_LE(std::abs(x[i] - scale * block.codes[i % 32]), scale * (0.5 + 127 * kUnit))
              << "table " << static_cast<int>(ops->isa) << " 2^" << max_exponent << " seed " << seed
              << " value " << i;
        }
      }
    }
  }
}

TEST(TileOpsTest, QuantizesTheLargestValueTo127) {
  for (const TileOps* ops : TestedTables()) {
    std::vector<float> x(32, 0.25f);
    x[7] = -2;
    const std::vector<ActivationBlock> blocks = Quantized(*ops, x);
    EXPECT_EQ(blocks[0].scale, 2.0f / 127);
    EXPECT_EQ(blocks[0].codes[7], -127);
    EXPECT_EQ(blocks[0].codes[8], 16);  // 15.875
  }
}

TEST(TileOpsTest, SumsTheCodesOfABlock) {
  for (const TileOps* ops : TestedTables()) {
    Rng rng(1);
    for (const ActivationBlock& block : Quantized(*ops, RandomFloats(rng, 64 * 32))) {
      int sums[2] = {0, 0};
      for (int i = 0; i < 32; ++i) sums[i / 16] += block.codes[i];
      EXPECT_EQ(block.minus_sum, -sums[0] - sums[1]);
      EXPECT_EQ(block.minus_scaled_sum, block.scale * static_cast<float>(-sums[0] - sums[1]));
      for (int h = 0; h < 2; ++h) {
        EXPECT_EQ(block.minus_half_sums[h], -sums[h]);
        EXPECT_EQ(block.minus_scaled_half_sums[h], block.scale * static_cast<float>(-sums[h]));
      }
    }
  }
}

TEST(TileOpsTest, QuantizesZerosToZeros) {
  for (const TileOps* ops : TestedTables()) {
    const ActivationBlock block = Quantized(*ops, std::vector<float>(32, -0.0f))[0];
    EXPECT_EQ(block.scale, 0);
    EXPECT_THAT(block.codes, ::testing::Each(0));
  }
}

TEST(TileOpsTest, LetsWhatIsNotFiniteShow) {
  for (const TileOps* ops : TestedTables()) {
    for (const float value : {INFINITY, -INFINITY, NAN}) {
      std::vector<float> x(64, 1);
      x[5] = value;
      const std::vector<ActivationBlock> blocks = Quantized(*ops, x);
      EXPECT_TRUE(std::isnan(blocks[0].scale));
      EXPECT_EQ(blocks[1].scale, 1.0f / 127);
    }
  }
}

TEST(TileOpsTest, QuantizesToTheSameBitsInEveryTable) {
  Rng rng(2);
  std::vector<float> x = RandomWideFloats(rng, 500 * 32, 20);
  for (size_t i = 0; i < x.size() / 2; ++i) x[i] = static_cast<float>(i % 255) / 2;  // ties
  const std::vector<ActivationBlock> expected = Quantized(PortableTileOps(), x);
  for (const TileOps* ops : TestedTables()) {
    const std::vector<ActivationBlock> blocks = Quantized(*ops, x);
    for (size_t i = 0; i < blocks.size(); ++i) {
      ASSERT_EQ(std::memcmp(blocks[i].codes, expected[i].codes, 32), 0) << i;
      ASSERT_EQ(blocks[i].scale, expected[i].scale) << i;
      ASSERT_EQ(blocks[i].minus_scaled_sum, expected[i].minus_scaled_sum) << i;
    }
  }
}

TEST(TileOpsTest, HasATableForEveryChosenInstructionSet) {
  for (const CpuIsa isa : TestedIsas()) EXPECT_EQ((*TileOpsFor(isa))->isa, isa);
  EXPECT_EQ((*TileOpsFor(CpuIsa::kAuto))->isa, TestedIsas().back());
}

}  // namespace
}  // namespace caravan
