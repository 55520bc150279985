#include "kernels/quant/fp8_blocks.h"

#include <cmath>
#include <limits>
#include <vector>

#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

struct Fp8Matrix {
  std::vector<std::byte> codes;
  std::vector<float> scales;

  float At(int64_t index, int64_t cols) const {
    const int64_t block =
        index / cols / kFp8BlockSize * Fp8Blocks(cols) + index % cols / kFp8BlockSize;
    return Float8E4M3ToFloat(static_cast<uint8_t>(codes[index])) * scales[block];
  }
};

Fp8Matrix Quantized(const std::vector<float>& values, int64_t rows, int64_t cols) {
  Fp8Matrix m = {std::vector<std::byte>(rows * cols),
                 std::vector<float>(Fp8Blocks(rows) * Fp8Blocks(cols))};
  EXPECT_TRUE(QuantizeFp8Blocks(values.data(), rows, cols, m.codes.data(), m.scales.data()).ok());
  return m;
}

TEST(QuantizeFp8BlocksTest, RoundsToTheNearestWithinItsBlock) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Rng rng(seed);
    const int64_t rows = RandomInt(rng, 1, 300), cols = RandomInt(rng, 1, 300);
    const std::vector<float> values = RandomFloats(rng, rows * cols);
    const Fp8Matrix m = Quantized(values, rows, cols);
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float scale =
          m.scales[i / cols / kFp8BlockSize * Fp8Blocks(cols) + i % cols / kFp8BlockSize];
      // Half a step: 2^-4 of the value, 2^-10 of the scale below the smallest normal code. The
      // quotient is rounded before the code is.
      const float bound =
          std::max(std::abs(values[i]) * 0x1p-4f, scale * 0x1p-10f) * (1 + 0x1p-20f);
      ASSERT_NEAR(m.At(i, cols), values[i], bound) << "seed " << seed << " at " << i;
    }
  }
}

TEST(QuantizeFp8BlocksTest, GivesTheSameBitsForItsOwnWeights) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Rng rng(seed);
    const int64_t rows = RandomInt(rng, 1, 200), cols = RandomInt(rng, 1, 200);
    std::vector<float> values = seed % 2 == 0 ? RandomFloats(rng, rows * cols, 0.1f)
                                              : RandomWideFloats(rng, rows * cols, 127);
    const Fp8Matrix first = Quantized(values, rows, cols);
    for (int64_t i = 0; i < rows * cols; ++i) values[i] = first.At(i, cols);
    const Fp8Matrix second = Quantized(values, rows, cols);
    EXPECT_EQ(first.codes, second.codes) << "seed " << seed;
    EXPECT_EQ(first.scales, second.scales) << "seed " << seed;
  }
}

TEST(QuantizeFp8BlocksTest, HoldsTheEndsOfTheFloats) {
  const float max = std::numeric_limits<float>::max();
  EXPECT_TRUE(std::isfinite(Quantized({max, -max}, 1, 2).At(0, 2)));
  EXPECT_EQ(Quantized({0.0f, -0.0f}, 1, 2).scales[0], 1);
  EXPECT_EQ(Quantized({0.0f}, 1, 1).At(0, 1), 0);
  EXPECT_EQ(Quantized({0x1p-149f}, 1, 1).At(0, 1), 0);
}

TEST(QuantizeFp8BlocksTest, RefusesWhatIsNotFinite) {
  std::byte codes[2];
  float scale;
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    const float values[] = {1, bad};
    EXPECT_EQ(QuantizeFp8Blocks(values, 2, 1, codes, &scale).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace caravan
