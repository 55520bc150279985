#include "kernels/cpu/row_ops.h"

#include <cmath>

#include "gmock/gmock.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

std::vector<const RowOps*> TestedTables() {
  std::vector<const RowOps*> tables;
  for (const CpuIsa isa : TestedIsas()) tables.push_back(*RowOpsFor(isa));
  return tables;
}

bool SameValue(float a, float b) {
  return std::isnan(b) ? std::isnan(a) : std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

TEST(RowOpsTest, DecodesEveryF8CodeExactly) {
  std::vector<uint8_t> codes(256);
  for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
  for (const RowOps* ops : TestedTables()) {
    std::vector<float> values(256);
    ops->decode_f8e4m3(codes.data(), 256, 1, values.data());
    for (int i = 0; i < 256; ++i) {
      EXPECT_TRUE(SameValue(values[i], Float8E4M3ToFloat(codes[i])))
          << ops->name << ": code " << i << " became " << values[i];
    }
  }
}

TEST(RowOpsTest, DecodesEvery16BitCodeExactly) {
  std::vector<uint16_t> codes(65536);
  for (int i = 0; i < 65536; ++i) codes[i] = static_cast<uint16_t>(i);
  for (const RowOps* ops : TestedTables()) {
    std::vector<float> values(65536);
    ops->decode_f16(codes.data(), 65536, 1, values.data());
    for (int i = 0; i < 65536; ++i) {
      ASSERT_TRUE(SameValue(values[i], Float16ToFloat(codes[i]))) << ops->name << ": code " << i;
    }
    ops->decode_bf16(codes.data(), 65536, 1, values.data());
    for (int i = 0; i < 65536; ++i) {
      ASSERT_TRUE(SameValue(values[i], BFloat16ToFloat(codes[i]))) << ops->name << ": code " << i;
    }
  }
}

TEST(RowOpsTest, DecodesQ8_0Exactly) {
  Rng rng(8);
  for (const RowOps* ops : TestedTables()) {
    for (int64_t n = 0; n <= 96; n += 32) {
      const TestMatrix m = TestMatrix::RandomBlocks(rng, DType::kQ8_0, 1, n);
      std::vector<float> values(n + 1, 77);
      ops->decode_q8_0(m.view().data, n, 1, values.data());
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(values[i], m.At(0, i)) << ops->name << " " << i;
      EXPECT_EQ(values[n], 77) << ops->name;
    }
  }
}

TEST(RowOpsTest, TransposesAndWritesNoFurther) {
  Rng rng(9);
  for (const RowOps* ops : TestedTables()) {
    for (const int64_t num_rows : {1, 7, 8, 9, 16, 33}) {
      for (const int64_t n : {1, 8, 13, 40}) {
        const std::vector<float> values = RandomFloats(rng, num_rows * n);
        std::vector<const float*> rows;
        for (int64_t r = 0; r < num_rows; ++r) rows.push_back(values.data() + r * n);
        const int64_t stride = num_rows + 3;
        std::vector<float> out(n * stride, 77);
        ops->transpose(rows.data(), num_rows, n, out.data(), stride);
        for (int64_t i = 0; i < n * stride; ++i) {
          const int64_t r = i % stride;
          ASSERT_EQ(out[i], r < num_rows ? rows[r][i / stride] : 77)
              << ops->name << " " << num_rows;
        }
      }
    }
  }
}

TEST(RowOpsTest, MaxIgnoresNaN) {
  for (const RowOps* ops : TestedTables()) {
    for (int64_t n = 0; n <= 20; ++n) {
      std::vector<float> x(21, 1000);  // what stands behind the n
      for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(i * 7 % n) - 50;
      float expected = -INFINITY;
      for (int64_t i = 0; i < n; ++i) expected = std::max(expected, x[i]);
      EXPECT_EQ(ops->max(x.data(), n), expected) << ops->name << " " << n;
      for (int64_t i = 0; i < n; i += 3) x[i] = NAN;
      expected = -INFINITY;
      for (int64_t i = 0; i < n; ++i) expected = x[i] > expected ? x[i] : expected;
      EXPECT_EQ(ops->max(x.data(), n), expected) << ops->name << " " << n;
    }
  }
}

TEST(RowOpsTest, ExponentialsAreWithinTwoUnitsAndTheirSumIsTheirs) {
  Rng rng(10);
  for (const RowOps* ops : TestedTables()) {
    for (int round = 0; round < 2000; ++round) {
      const int64_t n = RandomInt(rng, 0, 70);
      // Scale 1 and maximum 0: the arguments are exact.
      std::vector<float> x = RandomFloats(rng, n + 1, 45);
      for (float& value : x) value -= 45;
      if (round % 3 == 0) {
        for (float& value : x) value *= 0x1p-7f;
      }
      const std::vector<float> before = x;
      const double sum = ops->exp_of_differences(1, 0, n, x.data());
      double expected_sum = 0;
      for (int64_t i = 0; i < n; ++i) {
        const double expected = std::exp(static_cast<double>(before[i]));
        ASSERT_NEAR(x[i], expected, expected * 4 * kUnit + 0x1p-124)
            << ops->name << " " << before[i];
        expected_sum += x[i];
      }
      ASSERT_NEAR(sum, expected_sum, expected_sum * SumDepth(n) * kUnit) << ops->name;
      ASSERT_EQ(x[n], before[n]) << ops->name;
    }
    float special[] = {0, -INFINITY, NAN, -1000, -86.5f, -87};
    ops->exp_of_differences(1, 0, 6, special);
    EXPECT_EQ(special[0], 1);
    EXPECT_EQ(special[1], 0);
    EXPECT_TRUE(std::isnan(special[2]));
    EXPECT_EQ(special[3], 0);
    EXPECT_GT(special[4], 0);
    EXPECT_EQ(special[5], 0);
    float shifted[] = {3, 1};
    EXPECT_NEAR(ops->exp_of_differences(0.5f, 1.5f, 2, shifted), 1 + std::exp(-1.0), 1e-6);
  }
}

TEST(RowOpsTest, VectorsOfAnyWidthThatFuseGiveTheSameSums) {
  if (!RowOpsFor(CpuIsa::kAvx512).ok()) GTEST_SKIP() << "no AVX-512";
  Rng rng(11);
  for (int round = 0; round < 60; ++round) {
    const int64_t num_out = RandomInt(rng, 1, 20), num_rows = RandomInt(rng, 1, 250);
    const int64_t n = RandomInt(rng, 1, 150);
    const std::vector<float> weights = RandomFloats(rng, num_out * num_rows);
    const std::vector<float> values = RandomFloats(rng, num_rows * n);
    std::vector<const float*> rows;
    for (int64_t j = 0; j < num_rows; ++j) rows.push_back(values.data() + j * n);
    std::vector<float> avx2 = RandomFloats(rng, num_out * n), avx512 = avx2, one_by_one = avx2;
    (*RowOpsFor(CpuIsa::kAvx2))
        ->weighted_sums(weights.data(), num_rows, rows.data(), num_rows, n, avx2.data(), n,
                        num_out);
    const RowOps& ops = **RowOpsFor(CpuIsa::kAvx512);
    ops.weighted_sums(weights.data(), num_rows, rows.data(), num_rows, n, avx512.data(), n,
                      num_out);
    EXPECT_EQ(avx512, avx2) << num_out << " " << num_rows << " " << n;
    for (int64_t i = 0; i < num_out; ++i) {
      ops.weighted_sums(weights.data() + i * num_rows, num_rows, rows.data(), num_rows, n,
                        one_by_one.data() + i * n, n, 1);
    }
    EXPECT_EQ(one_by_one, avx512) << num_out << " " << num_rows << " " << n;
  }
}

TEST(RowOpsTest, DecodesAnyLengthAndWritesNoFurther) {
  Rng rng(1);
  for (const RowOps* ops : TestedTables()) {
    for (const DType dtype : kWeightTypes) {
      const RowOps::Decode decode = dtype == DType::kF32    ? ops->decode_f32
                                    : dtype == DType::kF16  ? ops->decode_f16
                                    : dtype == DType::kBF16 ? ops->decode_bf16
                                                            : ops->decode_f8e4m3;
      for (int64_t n = 0; n <= 40; ++n) {
        const TestMatrix m = TestMatrix::Random(rng, dtype, 1, n);
        Matrix view = m.view();
        const float scale = view.scale_inv == nullptr ? 1 : *view.scale_inv;
        std::vector<float> values(n + 1, 77);
        decode(view.data, n, scale, values.data());
        for (int64_t i = 0; i < n; ++i) {
          EXPECT_EQ(values[i], static_cast<float>(m.At(0, i)))
              << ops->name << " " << DTypeName(dtype) << " n " << n << " i " << i;
        }
        EXPECT_EQ(values[n], 77) << ops->name << " " << DTypeName(dtype) << " n " << n;
      }
    }
  }
}

TEST(RowOpsTest, DotsAreExactOnSmallIntegersAndAddToTheResult) {
  Rng rng(2);
  for (const RowOps* ops : TestedTables()) {
    for (int64_t n = 0; n <= 35; ++n) {
      for (int64_t num_x = 0; num_x <= 5; ++num_x) {
        for (int64_t num_w = 1; num_w <= 9; ++num_w) {
          const TestMatrix x = TestMatrix::RandomIntegers(rng, DType::kF32, num_x, n, 4);
          const TestMatrix w = TestMatrix::RandomIntegers(rng, DType::kF32, num_w, n, 4);
          std::vector<const float*> x_rows, w_rows;
          for (int64_t i = 0; i < num_x; ++i) {
            x_rows.push_back(reinterpret_cast<const float*>(x.view().data) + i * n);
          }
          for (int64_t j = 0; j < num_w; ++j) {
            w_rows.push_back(reinterpret_cast<const float*>(w.view().data) + j * n);
          }
          const int64_t stride = num_w + 1;
          std::vector<float> out(num_x * stride, 5);
          ops->dots(w_rows.data(), num_w, x_rows.data(), num_x, n, out.data(), stride);
          for (int64_t i = 0; i < num_x; ++i) {
            for (int64_t j = 0; j < num_w; ++j) {
              double expected = 5;
              for (int64_t c = 0; c < n; ++c) expected += x.At(i, c) * w.At(j, c);
              ASSERT_EQ(out[i * stride + j], expected) << ops->name << " n " << n;
            }
            ASSERT_EQ(out[i * stride + num_w], 5) << ops->name << " n " << n;
          }
        }
      }
    }
  }
}

TEST(RowOpsTest, WeightedSumsAreExactOnSmallIntegersAndAddToTheResult) {
  Rng rng(3);
  for (const RowOps* ops : TestedTables()) {
    for (int64_t n = 0; n <= 75; ++n) {
      for (int64_t num_out = 0; num_out <= 3; ++num_out) {
        const int64_t num_rows = RandomInt(rng, 0, 6);
        const TestMatrix weights =
            TestMatrix::RandomIntegers(rng, DType::kF32, num_out, num_rows, 4);
        const TestMatrix rows = TestMatrix::RandomIntegers(rng, DType::kF32, num_rows, n, 4);
        std::vector<const float*> pointers;
        for (int64_t j = 0; j < num_rows; ++j) {
          pointers.push_back(reinterpret_cast<const float*>(rows.view().data) + j * n);
        }
        std::vector<float> out(num_out * (n + 1), 5);
        ops->weighted_sums(reinterpret_cast<const float*>(weights.view().data), num_rows,
                           pointers.data(), num_rows, n, out.data(), n + 1, num_out);
        for (int64_t i = 0; i < num_out; ++i) {
          for (int64_t c = 0; c < n; ++c) {
            double expected = 5;
            for (int64_t j = 0; j < num_rows; ++j) expected += weights.At(i, j) * rows.At(j, c);
            ASSERT_EQ(out[i * (n + 1) + c], expected) << ops->name << " n " << n;
          }
          ASSERT_EQ(out[i * (n + 1) + n], 5) << ops->name << " n " << n;
        }
      }
    }
  }
}

TEST(RowOpsTest, RunsTheElementwiseLoopsExactlyOnSmallIntegers) {
  for (const RowOps* ops : TestedTables()) {
    for (int64_t n = 0; n <= 20; ++n) {
      std::vector<float> x(n), y(n + 1, 3), weight(n, 4);
      float squares = 0;
      for (int64_t i = 0; i < n; ++i) {
        x[i] = static_cast<float>(i - 5);
        squares += x[i] * x[i];
      }
      EXPECT_EQ(ops->sum_squares(x.data(), n), squares) << ops->name << " n " << n;
      ops->axpy(2, x.data(), n, y.data());
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(y[i], 3 + 2 * x[i]) << ops->name << " n " << n;
      ops->scale(0.5f, n, y.data());
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(y[i], 1.5f + x[i]) << ops->name << " n " << n;
      ops->scale_by(x.data(), 0.25f, weight.data(), n, y.data());
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(y[i], x[i]) << ops->name << " n " << n;
      EXPECT_EQ(y[n], 3) << ops->name << " n " << n;
    }
  }
}

TEST(RowOpsTest, ChoosesAnInstructionSetThatRuns) {
  const absl::StatusOr<const RowOps*> chosen = RowOpsFor(CpuIsa::kAuto);
  ASSERT_TRUE(chosen.ok());
  EXPECT_EQ((*chosen)->isa, TestedIsas().back());
  EXPECT_EQ((*RowOpsFor(CpuIsa::kPortable))->isa, CpuIsa::kPortable);
}

}  // namespace
}  // namespace caravan
