// Products with tiled matrices, against their exact values.

#include "kernels/cpu/tile_product.h"

#include <cmath>

#include "gmock/gmock.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

/// With activations rounded to blocks: for each sub-block (at least 16 values), the integer dot
/// product is exact, its scale is rounded once and its addition once, and with a minimum the same
/// again. So |error| <= (1 + 2 n / 16) units of the sum of all terms' magnitudes; a scale that is
/// subnormal is off by kTiny and multiplies a dot product of at most 32 * 128 * 127.
TEST(TileProductTest, BlockFormatsAddNothingButTheRoundingOfTheirSums) {
  for (const DType dtype : kBlockTypes) {
    for (uint64_t seed = 0; seed < 10; ++seed) {
      Rng rng(seed);
      const int64_t rows = RandomInt(rng, 1, 70);
      const int64_t cols =
          RandomInt(rng, 1, dtype == DType::kQ8_0 ? 40 : 6) * BlockOf(dtype).values;
      const int64_t num_rows = RandomInt(rng, 0, seed % 3 == 0 ? 40 : 9);
      const TestMatrix w = TestMatrix::RandomBlocks(rng, dtype, rows, cols);
      std::vector<std::byte> tiles;
      const Matrix tiled = w.Tiled(tiles);
      // Subnormals, ordinary values, and large ones whose sums stay finite.
      const std::vector<float> x =
          seed < 4 ? RandomFloats(rng, num_rows * cols)
                   : RandomWideFloats(rng, num_rows * cols, seed % 2 == 0 ? 100 : -120);
      const std::vector<double> rounded = RoundedToBlocks(x);
      const double sub_blocks = static_cast<double>(cols) / 16;
      for (const NamedBackend& cpu : CpuBackends()) {
        std::vector<float> out(num_rows * rows + 1, 77);
        cpu.backend->MatMul(tiled, x.data(), num_rows, out.data());
        EXPECT_EQ(out.back(), 77) << cpu.name << " wrote past the end";
        for (int64_t r = 0; r < rows; ++r) {
          const std::vector<double> subtracted = Subtracted(w.view(), r);
          for (int64_t t = 0; t < num_rows; ++t) {
            double expected = 0, magnitude = 0;
            for (int64_t c = 0; c < cols; ++c) {
              const double value = rounded[t * cols + c];
              expected += w.At(r, c) * value;
              magnitude += (std::abs(w.At(r, c) - subtracted[c]) + std::abs(subtracted[c])) *
                           std::abs(value);
            }
            const double error = 1.01 * (1 + 2 * sub_blocks) * kUnit * magnitude +
                                 2 * sub_blocks * (32 * 128 * 127) * kTiny;
            ASSERT_NEAR(out[t * rows + r], expected, error)
                << cpu.name << " " << DTypeName(dtype) << " seed " << seed << " row " << t
                << " column " << r;
          }
        }
      }
    }
  }
}

/// Of the terms of 64 columns each passes at most 64 additions, then one for each 64 columns; its
/// weight's scale and the result are rounded too.
TEST(TileProductTest, FloatsStayWithinTheErrorOfTheirSums) {
  for (const DType dtype : kWeightTypes) {
    for (uint64_t seed = 0; seed < 10; ++seed) {
      Rng rng(seed);
      const int64_t rows = RandomInt(rng, 1, 150);
      const int64_t cols = RandomInt(rng, 1, seed % 3 == 0 ? 1200 : 300);
      const int64_t num_rows = RandomInt(rng, 0, seed % 3 == 1 ? 40 : 9);
      const TestMatrix w = TestMatrix::Random(rng, dtype, rows, cols);
      std::vector<std::byte> tiles;
      const Matrix tiled = w.Tiled(tiles);
      const std::vector<float> x = RandomFloats(rng, num_rows * cols);
      const double depth = 1.01 * (1 + 64 + static_cast<double>(cols + 63) / 64 + 2);
      for (const NamedBackend& cpu : CpuBackends()) {
        std::vector<float> out(num_rows * rows + 1, 77);
        cpu.backend->MatMul(tiled, x.data(), num_rows, out.data());
        EXPECT_EQ(out.back(), 77) << cpu.name << " wrote past the end";
        for (int64_t t = 0; t < num_rows; ++t) {
          for (int64_t r = 0; r < rows; ++r) {
            double expected = 0, magnitude = 0;
            for (int64_t c = 0; c < cols; ++c) {
              expected += w.At(r, c) * x[t * cols + c];
              magnitude += std::abs(w.At(r, c) * x[t * cols + c]);
            }
            ASSERT_NEAR(out[t * rows + r], expected,
                        depth * (kUnit * magnitude + static_cast<double>(cols) * kTiny))
                << cpu.name << " " << DTypeName(dtype) << " seed " << seed << " row " << t;
          }
        }
      }
    }
  }
}

TEST(TileProductTest, ExtremeCodesDoNotOverflow) {
  // Every byte of the codes 0xff or 0x80, with activations of one sign: the largest sums there are.
  for (const DType dtype : kBlockTypes) {
    for (const int byte : {0xff, 0x80, 0x7f}) {
      Rng rng(1);
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
      const Matrix w = {.data = tiles.data(),
                        .dtype = dtype,
                        .rows = 1,
                        .cols = 512,
                        .layout = MatrixLayout::kTiled16};
      for (const float sign : {1.0f, -1.0f}) {
        // A scale of exactly 1, and every sub-block's codes alike: all terms are multiples of 16
        // below 2^28, so floats hold them exactly.
        // One row goes straight from the block's bits, nine from unpacked codes.
        const std::vector<float> x(9 * 512, sign * 127);
        double expected = 0;
        for (const double value : values) expected += value * sign * 127;
        for (const NamedBackend& cpu : CpuBackends()) {
          for (const int64_t num_rows : {1, 9}) {
            std::vector<float> out(num_rows);
            cpu.backend->MatMul(w, x.data(), num_rows, out.data());
            EXPECT_EQ(out, std::vector<float>(num_rows, static_cast<float>(expected)))
                << cpu.name << " " << DTypeName(dtype) << " bytes " << byte;
          }
        }
      }
    }
  }
}

/// Ffn and RoutedExperts must be what MatMul makes of their parts, to the bit: the weights of
/// experts are powers of two, so that a fused and a plain addition agree.
TEST(TileProductTest, ExpertsAreTheProductsOfTheirMatrices) {
  struct Types {
    DType in, out;
  };
  for (const Types types : {Types{DType::kQ4_K, DType::kQ6_K}, Types{DType::kQ8_0, DType::kBF16},
                            Types{DType::kF8E4M3, DType::kQ4_0}, Types{DType::kBF16, DType::kF32},
                            Types{DType::kQ2_K, DType::kQ3_K}}) {
    Rng rng(5);
    const int64_t hidden = 512, inter = 256, num_experts = 3, k = 2, num_rows = 21;
    const auto random = [&](DType dtype, int64_t rows, int64_t cols) {
      return BlockOf(dtype).values > 1 ? TestMatrix::RandomBlocks(rng, dtype, rows, cols)
                                       : TestMatrix::Random(rng, dtype, rows, cols);
    };
    std::vector<TestMatrix> matrices;
    std::vector<std::vector<std::byte>> tiles(3 * num_experts);
    for (int64_t e = 0; e < num_experts; ++e) {
      matrices.push_back(random(types.in, inter, hidden));
      matrices.push_back(random(types.in, inter, hidden));
      matrices.push_back(random(types.out, hidden, inter));
    }
    std::vector<FfnWeights> experts;
    for (int64_t e = 0; e < num_experts; ++e) {
      experts.push_back({matrices[3 * e].Tiled(tiles[3 * e]),
                         matrices[3 * e + 1].Tiled(tiles[3 * e + 1]),
                         matrices[3 * e + 2].Tiled(tiles[3 * e + 2])});
    }
    const std::vector<float> x = RandomFloats(rng, num_rows * hidden);
    std::vector<int32_t> ids;
    std::vector<float> weights;
    for (int64_t t = 0; t < num_rows; ++t) {
      ids.insert(ids.end(), {static_cast<int32_t>(t % 2), 2});
      weights.insert(weights.end(), {0.5f, 0.25f});
    }
    for (const NamedBackend& cpu : CpuBackends()) {
      std::vector<std::vector<float>> products;
      for (const FfnWeights& ffn : experts) {
        std::vector<float> gates(num_rows * inter), ups(gates.size()), out(num_rows * hidden);
        cpu.backend->MatMul(ffn.gate, x.data(), num_rows, gates.data());
        cpu.backend->MatMul(ffn.up, x.data(), num_rows, ups.data());
        for (size_t i = 0; i < gates.size(); ++i) {
          gates[i] = gates[i] / (1 + std::exp(-gates[i])) * ups[i];
        }
        cpu.backend->MatMul(ffn.down, gates.data(), num_rows, out.data());
        products.push_back(out);
        std::vector<float> ffn_out(out.size());
        cpu.backend->Ffn(ffn, x.data(), num_rows, ffn_out.data());
        ASSERT_EQ(ffn_out, out) << cpu.name << " " << DTypeName(types.in);
      }
      std::vector<float> out(num_rows * hidden, 1), expected(out);
      RunResidentExperts(*cpu.backend, experts, x.data(), num_rows, ids.data(), weights.data(), k,
                         out.data());
      for (int64_t i = 0; i < num_rows * k; ++i) {
        for (int64_t c = 0; c < hidden; ++c) {
          expected[i / k * hidden + c] += weights[i] * products[ids[i]][i / k * hidden + c];
        }
      }
      ASSERT_EQ(out, expected) << cpu.name << " " << DTypeName(types.in);
    }
  }
}

TEST(TileProductTest, LayoutsGiveTheReferenceTheSameValues) {
  for (const DType dtype : kBlockTypes) {
    Rng rng(6);
    const TestMatrix w = TestMatrix::RandomBlocks(rng, dtype, 19, 512);
    std::vector<std::byte> tiles;
    const std::vector<float> x = RandomFloats(rng, 2 * 512);
    std::vector<float> plain(2 * 19), tiled(2 * 19);
    MakeReferenceBackend()->MatMul(w.view(), x.data(), 2, plain.data());
    MakeReferenceBackend()->MatMul(w.Tiled(tiles), x.data(), 2, tiled.data());
    EXPECT_EQ(plain, tiled) << DTypeName(dtype);
  }
}

TEST(TileProductTest, EmbedsFromTilesAndFromBlocks) {
  for (const DType dtype : {DType::kQ8_0, DType::kQ6_K, DType::kBF16, DType::kF8E4M3}) {
    Rng rng(7);
    const TestMatrix table = BlockOf(dtype).values > 1
                                 ? TestMatrix::RandomBlocks(rng, dtype, 140, 768)
                                 : TestMatrix::Random(rng, dtype, 140, 768);
    std::vector<std::byte> tiles;
    const std::vector<int32_t> ids = {139, 0, 7, 7};
    for (const NamedBackend& tested : AllBackends()) {
      for (const Matrix& matrix : {table.view(), table.Tiled(tiles)}) {
        std::vector<float> out(ids.size() * 768);
        tested.backend->Embed(matrix, ids, out.data());
        for (size_t i = 0; i < out.size(); ++i) {
          ASSERT_EQ(out[i], static_cast<float>(table.At(ids[i / 768], i % 768)))
              << tested.name << " " << DTypeName(dtype);
        }
      }
    }
  }
}

TEST(TileProductTest, ProductsOfBlockFormatsAreTheSameOnEveryInstructionSet) {
  for (const DType dtype : kBlockTypes) {
    Rng rng(4);
    std::vector<std::byte> tiles;
    const Matrix w = TestMatrix::RandomBlocks(rng, dtype, 35, 1024).Tiled(tiles);
    const std::vector<float> x = RandomFloats(rng, 11 * w.cols);
    std::vector<float> expected(11 * w.rows);
    CpuBackendFor(CpuIsa::kPortable, 1)->MatMul(w, x.data(), 11, expected.data());
    for (const NamedBackend& cpu : CpuBackends()) {
      std::vector<float> out(expected.size());
      cpu.backend->MatMul(w, x.data(), 11, out.data());
      EXPECT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
          << cpu.name << " " << DTypeName(dtype);
    }
  }
}

}  // namespace
}  // namespace caravan
