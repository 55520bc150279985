// QuantizeRow against the plain quantization by range, written here in its own way: as the values
// that it stands for, without blocks.

#include "kernels/quant/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "kernels/quant/blocks.h"
#include "kernels/quant/dequantize.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

constexpr int64_t kLength = 1024;

struct Format {
  DType dtype;
  int64_t sub_values;
  float max_code;  // that the largest value, or the largest above the least, gets
  float low_code, high_code;
  float max_scale;  // that the largest scale gets; 1: none
  bool has_min;
};

const Format kFormats[] = {
    {DType::kQ8_0, 32, 127, -127, 127, 1, false},  {DType::kQ4_0, 32, -8, -8, 7, 1, false},
    {DType::kQ6_K, 16, -32, -32, 31, -128, false}, {DType::kQ5_K, 32, 31, 0, 31, 63, true},
    {DType::kQ4_K, 32, 15, 0, 15, 63, true},       {DType::kQ3_K, 16, -4, -4, 3, -32, false},
    {DType::kQ2_K, 16, 3, 0, 3, 15, true},
};

float Half(float value) {
  return Float16ToFloat(FloatToFloat16(std::clamp(value, -65504.0f, 65504.0f)));
}

/// The values that a block's plain quantization stands for.
void NaiveBlock(const Format& format, const float* x, int64_t n, double* y) {
  const int64_t subs = n / format.sub_values;
  std::vector<float> s(subs), m(subs, 0.0f);
  float largest_s = 0, largest_m = 0;
  for (int64_t j = 0; j < subs; ++j) {
    const auto [min, max] =
        std::minmax_element(x + j * format.sub_values, x + (j + 1) * format.sub_values);
    if (format.has_min) {
      m[j] = std::max(-*min, 0.0f);
      s[j] = std::max((*max + m[j]) / format.max_code, 0.0f);
    } else {
      s[j] = (*max > -*min ? *max : *min) / format.max_code;
    }
    if (std::abs(s[j]) > std::abs(largest_s)) largest_s = s[j];
    largest_m = std::max(largest_m, m[j]);
  }
  const float d = Half(largest_s / format.max_scale);
  const float dmin = Half(largest_m / std::abs(format.max_scale));
  const float low_scale = format.has_min ? 0 : format.max_scale;
  const float high_scale = format.has_min ? format.max_scale : -format.max_scale - 1;
  for (int64_t j = 0; j < subs; ++j) {
    float scale = 1, min = 0;
    if (format.max_scale != 1) {
      scale = d == 0 ? 0 : std::nearbyint(std::clamp(s[j] / d, low_scale, high_scale));
      min = dmin == 0 ? 0 : std::nearbyint(std::clamp(m[j] / dmin, 0.0f, high_scale));
    }
    const double step = double{d} * scale, offset = double{dmin} * min;
    for (int64_t i = j * format.sub_values; i < (j + 1) * format.sub_values; ++i) {
      const double code = step == 0 ? 0 : std::nearbyint((x[i] + offset) / step);
      y[i] = step * std::clamp<double>(code, format.low_code, format.high_code) - offset;
    }
  }
}

std::vector<double> Naive(const Format& format, const std::vector<float>& x) {
  const int64_t block = BlockOf(format.dtype).values;
  std::vector<double> y(x.size());
  for (size_t first = 0; first < x.size(); first += block) {
    NaiveBlock(format, x.data() + first, block, y.data() + first);
  }
  return y;
}

std::vector<std::byte> Quantized(DType dtype, const std::vector<float>& x,
                                 const float* importance = nullptr) {
  const int64_t n = static_cast<int64_t>(x.size());
  std::vector<std::byte> bytes(DTypeBytes(dtype, n));
  EXPECT_TRUE(QuantizeRow(dtype, x.data(), n, importance, bytes.data()).ok());
  return bytes;
}

std::vector<double> Dequantized(DType dtype, const std::vector<std::byte>& bytes, size_t n) {
  std::vector<double> y(n);
  DequantizeRow(dtype, bytes.data(), static_cast<int64_t>(n), y.data());
  return y;
}

/// sqrt of the weighted sum of squares of x - y.
double Distance(const float* x, const double* y, const float* w, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += (w == nullptr ? 1 : w[i]) * (x[i] - y[i]) * (x[i] - y[i]);
  return std::sqrt(sum);
}

struct Row {
  std::string name;
  std::vector<float> x;
};

std::vector<Row> Rows(Rng& rng) {
  std::normal_distribution<float> normal;
  std::exponential_distribution<float> exponential;
  std::vector<Row> rows;
  const auto add = [&rows](std::string name, auto value) {
    Row row = {std::move(name), std::vector<float>(kLength)};
    for (float& x : row.x) x = value();
    rows.push_back(std::move(row));
  };
  add("normal", [&] { return normal(rng); });
  add("small normal", [&] { return normal(rng) * 1e-4f; });
  add("laplace", [&] { return (rng() % 2 ? 0.02f : -0.02f) * exponential(rng); });
  add("uniform", [&] { return RandomFloats(rng, 1)[0]; });
  add("positive", [&] { return exponential(rng); });
  add("negative", [&] { return -3 - exponential(rng); });
  add("zero", [] { return 0.0f; });
  add("constant", [] { return 0.37f; });
  add("negative constant", [] { return -0.37f; });
  add("outlier", [] { return 0.0f; });
  rows.back().x[RandomInt(rng, 0, kLength - 1)] = normal(rng) * 100;
  add("outlier in normal", [&] { return normal(rng) * 0.01f; });
  rows.back().x[RandomInt(rng, 0, kLength - 1)] = 7;
  add("denormal", [&] { return normal(rng) * 1e-40f; });
  add("near the least half", [&] { return normal(rng) * 0x1p-23f; });
  add("large", [&] { return normal(rng) * 1e6f; });
  add("huge", [&] { return RandomFloats(rng, 1)[0] * std::numeric_limits<float>::max(); });
  add("integers", [&] { return static_cast<float>(RandomInt(rng, -8, 7)); });
  rows.push_back({"wide", RandomWideFloats(rng, kLength, 127)});
  return rows;
}

std::vector<float> RandomImportance(Rng& rng) {
  std::vector<float> importance = RandomFloats(rng, kLength);
  for (float& w : importance) w = w < -0.8f ? 0 : std::exp(8 * w);
  std::fill_n(importance.begin() + RandomInt(rng, 0, 30) * 32, 32, 0.0f);
  return importance;
}

TEST(QuantizeRowTest, IsNeverWorseThanTheRangeAlone) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    Rng rng(seed);
    for (const Row& row : Rows(rng)) {
      const std::vector<float> importance = RandomImportance(rng);
      for (const Format& format : kFormats) {
        for (const float* w : {static_cast<const float*>(nullptr), importance.data()}) {
          const std::vector<double> y =
              Dequantized(format.dtype, Quantized(format.dtype, row.x, w), kLength);
          const std::vector<double> naive = Naive(format, row.x);
          const std::vector<double> zero(kLength);
          const int64_t n = BlockOf(format.dtype).values;
          for (int64_t first = 0; first < kLength; first += n) {
            const float* x = row.x.data() + first;
            const float* block_w = w == nullptr ? nullptr : w + first;
            const double max_w = w == nullptr ? 1 : *std::max_element(block_w, block_w + n);
            // Errors are compared in float: 256 terms in 4 lanes, of which each sum of squares has
            // a relative error below 2^-17, and residuals known to 2^-22 of x. Sub-blocks without
            // importance count 2^-40 of the largest, 2^-20 in the distance.
            const double slack = 0x1p-19 * std::sqrt(max_w) * Distance(x, zero.data(), nullptr, n);
            ASSERT_LE(Distance(x, &y[first], block_w, n),
                      Distance(x, &naive[first], block_w, n) * (1 + 0x1p-17) + slack)
                << DTypeName(format.dtype) << " of a row " << row.name << ", seed " << seed
                << (w == nullptr ? "" : ", weighted");
          }
        }
      }
    }
  }
}

TEST(QuantizeRowTest, HasFiniteScales) {
  Rng rng(3);
  for (const Row& row : Rows(rng)) {
    for (const Format& format : kFormats) {
      for (const double y : Dequantized(format.dtype, Quantized(format.dtype, row.x), kLength)) {
        ASSERT_TRUE(std::isfinite(y)) << DTypeName(format.dtype) << " of a row " << row.name;
      }
    }
  }
}

TEST(QuantizeRowTest, TreatsEachBlockAlone) {
  Rng rng(4);
  for (const Row& row : Rows(rng)) {
    const std::vector<float> importance = RandomImportance(rng);
    for (const Format& format : kFormats) {
      const std::vector<std::byte> whole = Quantized(format.dtype, row.x, importance.data());
      const DTypeBlock block = BlockOf(format.dtype);
      for (int64_t b = 0; b < kLength / block.values; ++b) {
        const auto first = row.x.begin() + b * block.values;
        const std::vector<std::byte> alone =
            Quantized(format.dtype, {first, first + block.values}, &importance[b * block.values]);
        ASSERT_TRUE(std::equal(alone.begin(), alone.end(), whole.begin() + b * block.bytes))
            << DTypeName(format.dtype) << " of a row " << row.name;
      }
    }
  }
}

/// A block whose sub-blocks have their extreme codes, and which has the extreme scale and min.
template <typename Block>
void ExpectFoundAgain() {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Rng rng(seed);
    Block block = {};
    block.d.SetBits(FloatToFloat16(std::ldexp(RandomFloats(rng, 1)[0] + 1.5f, -9)));
    if constexpr (Block::kHasMin) {
      block.dmin.SetBits(FloatToFloat16(std::ldexp(RandomFloats(rng, 1)[0] + 1.5f, -8)));
    }
    const int extreme_scale = Block::kMinScale < 0 ? Block::kMinScale : Block::kMaxScale;
    for (int s = 0; s < Block::kValues / Block::kSubValues; ++s) {
      const int scale = s == 3
                            ? extreme_scale
                            : static_cast<int>(RandomInt(rng, Block::kMinScale, Block::kMaxScale));
      const int min =
          s == 5 ? Block::kMaxScale : static_cast<int>(RandomInt(rng, 0, Block::kMaxScale));
      block.SetSub(s, {scale, Block::kHasMin ? min : 0});
      for (int i = 0; i < Block::kSubValues; ++i) {
        // Plain Q8_0 has no -128.
        const int low = std::max(Block::kMinCode, -127);
        const int code = i == 7    ? low
                         : i == 11 ? Block::kMaxCode
                                   : static_cast<int>(RandomInt(rng, low, Block::kMaxCode));
        block.SetCode(s * Block::kSubValues + i, code);
      }
    }
    std::vector<float> x(Block::kValues);
    DequantizeRow(Block::kDType, reinterpret_cast<const std::byte*>(&block), Block::kValues,
                  x.data());
    const std::vector<double> y =
        Dequantized(Block::kDType, Quantized(Block::kDType, x), Block::kValues);
    for (int i = 0; i < Block::kValues; ++i) {
      ASSERT_EQ(static_cast<float>(y[i]), x[i])
          << DTypeName(Block::kDType) << " seed " << seed << " value " << i;
    }
  }
}

TEST(QuantizeRowTest, FindsABlocksValuesAgain) {
  ExpectFoundAgain<Q8_0Block>();
  ExpectFoundAgain<Q4_0Block>();
  ExpectFoundAgain<Q6_KBlock>();
  ExpectFoundAgain<Q5_KBlock>();
  ExpectFoundAgain<Q4_KBlock>();
  ExpectFoundAgain<Q3_KBlock>();
  ExpectFoundAgain<Q2_KBlock>();
}

TEST(QuantizeRowTest, SpendsItsErrorWhereImportanceIsLow) {
  for (const Format& format : kFormats) {
    Rng rng(5);
    std::normal_distribution<float> normal;
    std::vector<float> x(1 << 14), importance(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = normal(rng);
      importance[i] = rng() % 4 == 0 ? 100 : 1;
    }
    const int64_t n = static_cast<int64_t>(x.size());
    const std::vector<double> plain = Dequantized(format.dtype, Quantized(format.dtype, x), n);
    const std::vector<double> weighted =
        Dequantized(format.dtype, Quantized(format.dtype, x, importance.data()), n);
    EXPECT_LT(Distance(x.data(), weighted.data(), importance.data(), n),
              Distance(x.data(), plain.data(), importance.data(), n))
        << DTypeName(format.dtype);
    EXPECT_GT(Distance(x.data(), weighted.data(), nullptr, n),
              Distance(x.data(), plain.data(), nullptr, n))
        << DTypeName(format.dtype);
  }
}

TEST(QuantizeRowTest, RefusesWhatIsNotFinite) {
  for (const Format& format : kFormats) {
    std::vector<float> x(256, 1.0f), importance(256, 1.0f);
    std::vector<std::byte> out(DTypeBytes(format.dtype, 256));
    for (const float bad : {INFINITY, -INFINITY, NAN, -1.0f}) {
      importance[200] = bad;
      EXPECT_EQ(QuantizeRow(format.dtype, x.data(), 256, importance.data(), out.data()).code(),
                absl::StatusCode::kInvalidArgument);
      importance[200] = 1;
      if (bad == -1) continue;
      x[255] = bad;
      EXPECT_EQ(QuantizeRow(format.dtype, x.data(), 256, nullptr, out.data()).code(),
                absl::StatusCode::kInvalidArgument);
      x[255] = 1;
    }
  }
}

/// Prints the table of docs/quality.md.
TEST(QuantizeRowTest, LosesLessThanTheRangeAloneOnNormalValues) {
  Rng rng(6);
  std::normal_distribution<float> normal;
  std::vector<float> x(1 << 20);
  for (float& value : x) value = normal(rng);
  const int64_t n = static_cast<int64_t>(x.size());
  const std::vector<double> zero(n);
  const double norm = Distance(x.data(), zero.data(), nullptr, n);
  std::printf("| type | bits a weight | by range | QuantizeRow | saved | 2^-bits |\n");
  std::printf("|---|---|---|---|---|---|\n");
  for (const Format& format : kFormats) {
    const double bits = static_cast<double>(DTypeBytes(format.dtype, 256)) / 32;
    const double bound = std::exp2(-bits);  // Shannon's rate-distortion function of a normal source
    const double ours =
        Distance(x.data(), Dequantized(format.dtype, Quantized(format.dtype, x), n).data(), nullptr,
                 n) /
        norm;
    const double naive = Distance(x.data(), Naive(format, x).data(), nullptr, n) / norm;
    std::printf("| %s | %g | %.5f | %.5f | %.1f%% | %.5f |\n",
                std::string(DTypeName(format.dtype)).c_str(), bits, naive, ours,
                100 * (1 - ours / naive), bound);
    EXPECT_LT(ours, naive) << DTypeName(format.dtype);
    EXPECT_GT(ours, bound) << DTypeName(format.dtype);
  }
}

}  // namespace
}  // namespace caravan
