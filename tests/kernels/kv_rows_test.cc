// What a cached row keeps of its values.

#include "kernels/kv_rows.h"

#include "gmock/gmock.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

std::vector<float> RoundTrip(DType dtype, const std::vector<float>& values) {
  const int64_t n = static_cast<int64_t>(values.size());
  std::vector<std::byte> row(DTypeBytes(dtype, n));
  EncodeKvRow(dtype, values.data(), n, row.data());
  std::vector<float> decoded(values.size());
  DequantizeRow(dtype, row.data(), n, decoded.data());
  return decoded;
}

TEST(KvRowsTest, EachFormatKeepsItsPrecision) {
  Rng rng(1);
  for (const int max_exponent : {-20, 0, 12}) {
    const std::vector<float> values = RandomWideFloats(rng, 96, max_exponent);
    EXPECT_EQ(RoundTrip(DType::kF32, values), values);
    const std::vector<float> f16 = RoundTrip(DType::kF16, values);
    for (size_t i = 0; i < values.size(); ++i) {
      // Half a step of binary16: 2^-11 of a normal value, 2^-25 below 2^-14.
      EXPECT_LE(std::abs(f16[i] - values[i]), std::max(std::abs(values[i]) * 0x1p-11, 0x1p-25));
    }
    const std::vector<float> q8_0 = RoundTrip(DType::kQ8_0, values);
    for (size_t block = 0; block < values.size(); block += 32) {
      double largest = 0, squares = 0;
      for (size_t i = block; i < block + 32; ++i) {
        largest = std::max<double>(largest, std::abs(values[i]));
        squares += std::pow(static_cast<double>(q8_0[i]) - values[i], 2);
      }
      // No worse than rounding to the nearest of 127 steps each way, whose size is rounded to
      // binary16: off by 127 half steps of that at most.
      const double step = largest / 127;
      const double each = step / 2 + 127 * std::max(step * 0x1p-11, 0x1p-25);
      EXPECT_LE(squares, 32 * each * each);
    }
  }
}

TEST(KvRowsTest, F16SaturatesAndKeepsNaN) {
  std::vector<float> values(32, 1e30f);
  values[1] = -INFINITY;
  values[2] = 65519;
  values[3] = NAN;
  const std::vector<float> decoded = RoundTrip(DType::kF16, values);
  EXPECT_EQ(decoded[0], 65504);
  EXPECT_EQ(decoded[1], -65504);
  EXPECT_EQ(decoded[2], 65504);
  EXPECT_TRUE(std::isnan(decoded[3]));
}

TEST(KvRowsTest, ARowOfQ8_0ThatIsNotFiniteIsNaNThroughout) {
  for (const float broken : {NAN, INFINITY}) {
    std::vector<float> values(64, 1);
    values[40] = broken;
    EXPECT_THAT(RoundTrip(DType::kQ8_0, values), Each(testing::IsNan()));
  }
}

TEST(KvRowsTest, RefusesFormatsByName) {
  MlaShape shape = {.qk_rope_head_dim = 64, .kv_lora_rank = 512};
  for (const DType dtype : kKvDTypes) EXPECT_TRUE(CheckKvDType(shape, dtype).ok());
  EXPECT_THAT(CheckKvDType(shape, DType::kBF16).message(), HasSubstr("BF16"));
  shape.kv_lora_rank = 500;
  EXPECT_TRUE(CheckKvDType(shape, DType::kF16).ok());
  const absl::Status status = CheckKvDType(shape, DType::kQ8_0);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("kv_lora_rank"));
  EXPECT_THAT(status.message(), HasSubstr("500"));
}

TEST(KvRowsTest, CountsBytesInWholeBlocks) {
  EXPECT_EQ(KvBytes(DType::kF32, 576), 2304);
  EXPECT_EQ(KvBytes(DType::kF16, 576), 1152);
  EXPECT_EQ(KvBytes(DType::kQ8_0, 576), 612);
  EXPECT_EQ(KvBytes(DType::kQ8_0, 33), 68);
}

}  // namespace
}  // namespace caravan
