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
