// Products on the device against their exact values, and their bits against each other.

#include "kernels/cuda/matrix_product.h"

#include <cstring>
#include <limits>
#include <set>

#include "gmock/gmock.h"
#include "kernels/cpu/tile_ops.h"
#include "tests/kernels/cuda/product_testing.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }

TEST_F(CudaProductTest, ActivationsAreQuantizedAsOnTheCpuToTheBit) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Rng rng(seed);
    const int64_t num_rows = 5, cols = 32 * RandomInt(rng, 1, 40);
    std::vector<float> x = seed == 0
                               ? RandomFloats(rng, num_rows * cols)
                               : RandomWideFloats(rng, num_rows * cols, seed == 1 ? 127 : -120);
    std::fill_n(x.begin(), 32, 0.0f);
    if (seed == 3) {
      x[40] = std::numeric_limits<float>::infinity();
      x[cols + 7] = std::numeric_limits<float>::quiet_NaN();
    }
    std::vector<ActivationBlock> expected(x.size() / 32);
    PortableTileOps().quantize(x.data(), static_cast<int64_t>(x.size()), expected.data());
    const DeviceBuffer memory = Poisoned<std::byte>(ActivationBytes(num_rows, cols));
    const DeviceBuffer rows = ToDevice(x);
    ASSERT_TRUE(QuantizeRows(stream(), rows.as<float>(), num_rows, cols,
                             ActivationsAt(memory.data(), num_rows, cols))
                    .ok());
    std::vector<std::byte> bytes = ToHost<std::byte>(memory);
    const ActivationRows out = ActivationsAt(bytes.data(), num_rows, cols);
    const int64_t padded = PaddedColumns(cols);
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t c = 0; c < padded; ++c) {
        const int code =
            out.codes[row * padded + c / 64 * 64 + ActivationByte(static_cast<int>(c % 64))];
        const ActivationScale scale = out.scales[(row * padded + c) / 32];
        if (c >= cols) {
          ASSERT_EQ(code, 0) << "seed " << seed;
          ASSERT_EQ(Bits(scale.scale), 0u);
          ASSERT_EQ(Bits(scale.scaled_sum), 0u);
          continue;
        }
        const ActivationBlock& block = expected[(row * cols + c) / 32];
        ASSERT_EQ(code, block.codes[c % 32]) << "seed " << seed << " row " << row << " " << c;
        if (std::isnan(block.scale)) {
          ASSERT_TRUE(std::isnan(scale.scale)) << "seed " << seed;
          continue;
        }
        ASSERT_EQ(Bits(scale.scale), Bits(block.scale)) << "seed " << seed << " row " << row;
        ASSERT_EQ(scale.scaled_sum, -block.minus_scaled_sum) << "seed " << seed << " row " << row;
      }
    }
  }
}

/// A block of 32 is an exact integer, scaled by at most three rounded factors (its scale, times the
/// activations', times the integer where it has more than 24 bits) and added once, with a minimum
/// twice; 16 blocks make a chunk, and the chunks are added. So |error| <= (3 + 2 * 16 + chunks)
/// units of the sum of all terms' magnitudes; a factor that is subnormal is off by kTiny and
/// multiplies an integer of at most 32 * 127 * 32 * 128.
TEST_F(CudaProductTest, BlockFormatsAddNothingButTheRoundingOfTheirSums) {
  for (const DType dtype : kBlockTypes) {
    for (uint64_t seed = 0; seed < 12; ++seed) {
      Rng rng(seed);
      const int64_t rows = RandomInt(rng, 1, 70);
      const int64_t cols =
          RandomInt(rng, 1, BlockOf(dtype).values == 32 ? 70 : 9) * BlockOf(dtype).values;
      const int64_t num_rows = seed == 0 ? 0 : seed < 4 ? 1 : RandomInt(rng, 2, 40);
      const TestMatrix w = TestMatrix::RandomBlocks(rng, dtype, rows, cols);
      // Subnormals, ordinary values, and large ones whose sums stay finite.
      const std::vector<float> x =
          seed < 6 ? RandomFloats(rng, num_rows * cols)
                   : RandomWideFloats(rng, num_rows * cols, seed % 2 == 0 ? 100 : -120);
      const std::vector<double> rounded = RoundedToBlocks(x);
      const std::vector<float> out = Multiply(Upload(w), x, 0, num_rows);
      EXPECT_TRUE(std::isnan(out.back())) << "wrote past the end";
      const double blocks = static_cast<double>(cols) / 32;
      const double depth = 1.01 * (3 + 2 * 16 + std::ceil(blocks / 16));
      for (int64_t r = 0; r < rows; ++r) {
        const std::vector<double> subtracted = Subtracted(w.view(), r);
        for (int64_t t = 0; t < num_rows; ++t) {
          double expected = 0, magnitude = 0;
          for (int64_t c = 0; c < cols; ++c) {
            const double value = rounded[t * cols + c];
            expected += w.At(r, c) * value;
            magnitude +=
                (std::abs(w.At(r, c) - subtracted[c]) + std::abs(subtracted[c])) * std::abs(value);
          }
          const double error =
              depth * kUnit * magnitude + 2 * blocks * (32.0 * 127 * 32 * 128) * kTiny;
          ASSERT_NEAR(out[t * rows + r], expected, error)
              << DTypeName(dtype) << " seed " << seed << " row " << t << " of " << num_rows
              << " column " << r << " of " << rows << " x " << cols;
        }
      }
    }
  }
}

/// Of a chunk's 512 columns each of 16 sums has 32; then come 4 additions and the chunks'. A
/// weight's scale and the result are rounded, too.
TEST_F(CudaProductTest, FloatsStayWithinTheErrorOfTheirSums) {
  for (const DType dtype : kWeightTypes) {
    for (uint64_t seed = 0; seed < 12; ++seed) {
      Rng rng(seed);
      const int64_t rows = RandomInt(rng, 1, 150);
      const int64_t cols = RandomInt(rng, 1, seed % 3 == 0 ? 1200 : 300);
      const int64_t num_rows = seed == 0 ? 0 : seed < 4 ? 1 : RandomInt(rng, 2, 20);
      const TestMatrix w = TestMatrix::Random(rng, dtype, rows, cols);
      const std::vector<float> x = RandomFloats(rng, num_rows * cols);
      const std::vector<float> out = Multiply(Upload(w), x, 0, num_rows);
      EXPECT_TRUE(std::isnan(out.back())) << "wrote past the end";
      const double depth = 1.01 * (1 + 32 + 4 + std::ceil(static_cast<double>(cols) / 512) + 2);
      for (int64_t t = 0; t < num_rows; ++t) {
        for (int64_t r = 0; r < rows; ++r) {
          double expected = 0, magnitude = 0;
          for (int64_t c = 0; c < cols; ++c) {
            expected += w.At(r, c) * x[t * cols + c];
            magnitude += std::abs(w.At(r, c) * x[t * cols + c]);
          }
          ASSERT_NEAR(out[t * rows + r], expected,
                      depth * (kUnit * magnitude + static_cast<double>(cols) * kTiny))
              << DTypeName(dtype) << " seed " << seed << " row " << t << " column " << r;
        }
      }
    }
  }
}

TEST_F(CudaProductTest, FloatsAreExactOnSmallIntegers) {
  for (const DType dtype : kWeightTypes) {
    Rng rng(7);
    // Partial blocks of 128 at both edges; sums stay far below 2^24.
    const int64_t rows = 133, cols = 2 * 512 + 131, num_rows = 7;
    const TestMatrix w = TestMatrix::RandomIntegers(rng, dtype, rows, cols, 4);
    std::vector<float> x = RandomFloats(rng, num_rows * cols, 8);
    for (float& value : x) value = std::round(value);
    const std::vector<float> out = Multiply(Upload(w), x, 0, num_rows);
    for (int64_t t = 0; t < num_rows; ++t) {
      for (int64_t r = 0; r < rows; ++r) {
        double expected = 0;
        for (int64_t c = 0; c < cols; ++c) expected += x[t * cols + c] * w.At(r, c);
        ASSERT_EQ(out[t * rows + r], expected) << DTypeName(dtype) << " row " << t << ", " << r;
      }
    }
  }
}

TEST_F(CudaProductTest, EveryF8CodeHasItsValue) {
  // Row r has code r in column 0 and ones elsewhere, which meet zeros.
  std::vector<std::byte> codes(256 * 32, std::byte{0x38});
  for (int r = 0; r < 256; ++r) codes[r * 32] = static_cast<std::byte>(r);
  std::vector<std::byte> tiles(TiledBytes(DType::kF8E4M3, 256, 32));
  TileMatrix(DType::kF8E4M3, 256, 32, codes.data(), tiles.data());
  const DeviceBuffer data = ToDevice(tiles);
  const Matrix w = {.data = data.data(),
                    .dtype = DType::kF8E4M3,
                    .rows = 256,
                    .cols = 32,
                    .layout = MatrixLayout::kTiled16};
  std::vector<float> x(32);
  x[0] = 1;
  const std::vector<float> out = Multiply(w, x, 0, 1);
  for (int r = 0; r < 256; ++r) {
    const float expected = Float8E4M3ToFloat(static_cast<uint8_t>(r));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(out[r])) << r;
    } else {
      EXPECT_EQ(out[r], expected) << r;
    }
  }
}

TEST_F(CudaProductTest, ExtremeCodesDoNotOverflow) {
  // Every byte of the codes 0xff or 0x80, with activations of one sign: the largest sums there are.
  for (const DType dtype : kBlockTypes) {
    for (const int byte : {0xff, 0x80, 0x7f}) {
      std::vector<std::byte> row(DTypeBytes(dtype, 512), static_cast<std::byte>(byte));
      for (int64_t at = 0; at < std::ssize(row); at += BlockOf(dtype).bytes) {
        for (const TileField& field : TileFieldsOf(dtype)) {
          const uint16_t one = 0x3c00;
          if (field.unit == 2) std::memcpy(row.data() + at + field.offset, &one, sizeof(one));
        }
      }
      std::vector<double> values(512);
      DequantizeRow(dtype, row.data(), 512, values.data());
      std::vector<std::byte> tiles(TiledBytes(dtype, 1, 512));
      TileMatrix(dtype, 1, 512, row.data(), tiles.data());
      const DeviceBuffer data = ToDevice(tiles);
      const Matrix w = {.data = data.data(),
                        .dtype = dtype,
                        .rows = 1,
                        .cols = 512,
                        .layout = MatrixLayout::kTiled16};
      for (const float sign : {1.0f, -1.0f}) {
        // A scale of exactly 1, and every sub-block's codes alike: all terms are multiples of 16
        // below 2^28, so floats hold them exactly.
        double expected = 0;
        for (const double value : values) expected += value * sign * 127;
        for (const int64_t num_rows : {1, 9}) {
          std::vector<float> out =
              Multiply(w, std::vector<float>(num_rows * 512, sign * 127), 0, num_rows);
          out.pop_back();
          EXPECT_EQ(out, std::vector<float>(num_rows, static_cast<float>(expected)))
              << DTypeName(dtype) << " bytes " << byte << " rows " << num_rows;
        }
      }
    }
  }
}

class CudaDeterminismTest : public CudaProductTest {
 protected:
  /// Expects the same bits from rows together and in pieces of each of `pieces`.
  void ExpectRowsIndependent(const Matrix& w, const std::vector<float>& x, int64_t num_rows,
                             const std::vector<int64_t>& pieces) {
    const std::vector<float> expected = Multiply(w, x, 0, num_rows);
    // Else the comparison could pass on output that nobody wrote.
    EXPECT_GT(std::set<float>(expected.begin(), expected.end() - 1).size(), expected.size() / 8);
    for (const int64_t piece : pieces) {
      for (int64_t row = 0; row < num_rows; row += piece) {
        const int64_t count = std::min(piece, num_rows - row);
        const std::vector<float> out = Multiply(w, x, row, count);
        ASSERT_EQ(
            std::memcmp(out.data(), expected.data() + row * w.rows, count * w.rows * sizeof(float)),
            0)
            << DTypeName(w.dtype) << " " << w.rows << " x " << w.cols << ", rows from " << row
            << " in pieces of " << piece;
      }
    }
  }
};

TEST_F(CudaDeterminismTest, ARowHasTheSameBitsAloneAndInAnyBatch) {
  std::vector<DType> types(std::begin(kWeightTypes), std::end(kWeightTypes));
  types.insert(types.end(), std::begin(kBlockTypes), std::end(kBlockTypes));
  for (const DType dtype : types) {
    Rng rng(1);
    // Several chunks, the last one partial.
    const int64_t cols = BlockOf(dtype).values == 1    ? 1101
                         : BlockOf(dtype).values == 32 ? 1120
                                                       : 1280;
    const TestMatrix w = RandomWeights(rng, dtype, 301, cols);
    const std::vector<float> x = RandomFloats(rng, 300 * cols);
    const Matrix uploaded = Upload(w);
    ExpectRowsIndependent(uploaded, x, 300, {3, 16, 17, 33});
    const std::vector<float> first(x.begin(), x.begin() + 40 * cols);
    ExpectRowsIndependent(uploaded, first, 40, {1, 8, 9});
  }
}

/// So many rows of weights that each warp has its tiles alone.
TEST_F(CudaDeterminismTest, BitsDoNotDependOnHowTheWorkIsShared) {
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_K}) {
    Rng rng(2);
    const int64_t cols = 1280, rows = 7001;
    const TestMatrix w = TestMatrix::RandomBlocks(rng, dtype, rows, cols);
    const std::vector<float> x = RandomFloats(rng, 320 * cols);
    ExpectRowsIndependent(Upload(w), x, 320, {1, 7, 16});
  }
}

TEST_F(CudaProductTest, HoldsAtTheShapesOfR1) {
  Rng rng(11);
  const TestMatrix w = TestMatrix::RandomBlocks(rng, DType::kQ8_0, 576, 7168);
  const std::vector<float> x = RandomFloats(rng, 2 * 7168);
  const std::vector<double> rounded = RoundedToBlocks(x);
  const std::vector<float> out = Multiply(Upload(w), x, 0, 2);
  for (int64_t t = 0; t < 2; ++t) {
    for (int64_t r = 0; r < 576; ++r) {
      double expected = 0, magnitude = 0;
      for (int64_t c = 0; c < 7168; ++c) {
        expected += w.At(r, c) * rounded[t * 7168 + c];
        magnitude += std::abs(w.At(r, c) * rounded[t * 7168 + c]);
      }
      ASSERT_NEAR(out[t * 576 + r], expected, 1.01 * (3 + 16 + 14) * kUnit * magnitude);
    }
  }
}

TEST_F(CudaProductTest, ANonFiniteActivationMakesItsOwnRowNan) {
  Rng rng(12);
  const TestMatrix w = TestMatrix::RandomBlocks(rng, DType::kQ4_K, 40, 512);
  std::vector<float> x = RandomFloats(rng, 3 * 512);
  x[512 + 100] = std::numeric_limits<float>::infinity();
  const std::vector<float> out = Multiply(Upload(w), x, 0, 3);
  for (int64_t i = 0; i < 3 * 40; ++i) EXPECT_EQ(std::isnan(out[i]), i / 40 == 1) << i;
}

TEST_F(CudaProductTest, RefusesWeightsInRowsByName) {
  const Matrix w = {.dtype = DType::kQ8_0, .rows = 48, .cols = 64};
  const absl::Status status = MultiplyRows(stream(), w, {}, 1, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("a Q8_0 matrix of 48 x 64 in rows"));
}

}  // namespace
}  // namespace caravan
