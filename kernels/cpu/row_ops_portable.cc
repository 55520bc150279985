// RowOps in plain C++, in loops that a compiler can vectorise without reordering a sum.

#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/dtype.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/quant/blocks.h"

namespace caravan {
namespace {

constexpr int64_t kLanes = 8;
using Lanes = std::array<float, kLanes>;

float SumLanes(const Lanes& v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

float Dot(const float* a, const float* b, int64_t n) {
  Lanes sums = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < n; ++i) sums[i % kLanes] += a[i] * b[i];
  return SumLanes(sums);
}

void DecodeF32(const void* src, int64_t n, float scale, float* dst) {
  const auto* bytes = static_cast<const unsigned char*>(src);
  for (int64_t i = 0; i < n; ++i) {
    float value;
    std::memcpy(&value, bytes + 4 * i, sizeof(value));
    dst[i] = value * scale;
  }
}

template <float (*kToFloat)(uint16_t)>
void Decode16(const void* src, int64_t n, float scale, float* dst) {
  const auto* bytes = static_cast<const unsigned char*>(src);
  for (int64_t i = 0; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, bytes + 2 * i, sizeof(bits));
    dst[i] = kToFloat(bits) * scale;
  }
}

void DecodeF8E4M3(const void* src, int64_t n, float scale, float* dst) {
  static const std::array<float, 256> kValues = [] {
    std::array<float, 256> values;
    for (int code = 0; code < 256; ++code) {
      values[code] = Float8E4M3ToFloat(static_cast<uint8_t>(code));
    }
    return values;
  }();
  const auto* codes = static_cast<const uint8_t*>(src);
  for (int64_t i = 0; i < n; ++i) dst[i] = kValues[codes[i]] * scale;
}

void DecodeQ8_0(const void* src, int64_t n, float scale, float* dst) {
  const auto* bytes = static_cast<const unsigned char*>(src);
  for (int64_t i = 0; i < n; i += Q8_0Block::kValues, bytes += sizeof(Q8_0Block)) {
    Q8_0Block block;
    std::memcpy(&block, bytes, sizeof(block));
    const float d = block.D() * scale;
    for (int64_t j = 0; j < Q8_0Block::kValues; ++j) {
      dst[i + j] = static_cast<float>(block.codes[j]) * d;
    }
  }
}

void Dots(const float* const* w, int64_t num_w, const float* const* x, int64_t num_x, int64_t n,
          float* out, int64_t out_stride) {
  for (int64_t i = 0; i < num_x; ++i) {
    for (int64_t j = 0; j < num_w; ++j) out[i * out_stride + j] += Dot(x[i], w[j], n);
  }
}

void Axpy(float a, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

void WeightedSums(const float* weights, int64_t weights_stride, const float* const* rows,
                  int64_t num_rows, int64_t n, float* out, int64_t out_stride, int64_t num_out) {
  for (int64_t i = 0; i < num_out; ++i) {
    for (int64_t j = 0; j < num_rows; ++j) {
      Axpy(weights[i * weights_stride + j], rows[j], n, out + i * out_stride);
    }
  }
}

float SumSquares(const float* x, int64_t n) { return Dot(x, x, n); }

void ScaleBy(const float* x, float scale, const float* weight, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void Scale(float a, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] *= a;
}

float Max(const float* x, int64_t n) {
  float max = -INFINITY;
  for (int64_t i = 0; i < n; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

/// e^x for x <= 0: 2^n e^r with n the integer nearest to x / ln 2, and e^r by Taylor's series,
/// whose rest is below 2^-27 for |r| <= ln 2 / 2. Off by less than 2 units in the last place.
float Exp(float x) {
  if (x < kExp.smallest) return 0;
  const float shifted = x * kExp.log2_e + kExp.rounder;
  const float n = shifted - kExp.rounder;
  const float r = (x - n * kExp.ln2_high) - n * kExp.ln2_low;
  float p = kExp.coefficients[0];
  for (int i = 1; i < kExp.kCoefficients; ++i) p = p * r + kExp.coefficients[i];
  // The rounder's last bits hold n; all others are shifted out.
  return p * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u);
}

float ExpOfDifferences(float scale, float max, int64_t n, float* x) {
  Lanes sums = {};
  for (int64_t i = 0; i < n; ++i) {
    x[i] = Exp(x[i] * scale - max);
    sums[i % kLanes] += x[i];
  }
  return SumLanes(sums);
}

void Transpose(const float* const* rows, int64_t num_rows, int64_t n, float* out,
               int64_t out_stride) {
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t c = 0; c < n; ++c) out[c * out_stride + r] = rows[r][c];
  }
}

}  // namespace

const RowOps& PortableRowOps() {
  static constexpr RowOps kOps = {
      .isa = CpuIsa::kPortable,
      .name = "portable",
      .decode_f32 = DecodeF32,
      .decode_f16 = Decode16<Float16ToFloat>,
      .decode_bf16 = Decode16<BFloat16ToFloat>,
      .decode_f8e4m3 = DecodeF8E4M3,
      .decode_q8_0 = DecodeQ8_0,
      .dots = Dots,
      .weighted_sums = WeightedSums,
      .sum_squares = SumSquares,
      .scale_by = ScaleBy,
      .axpy = Axpy,
      .scale = Scale,
      .max = Max,
      .exp_of_differences = ExpOfDifferences,
      .transpose = Transpose,
  };
  return kOps;
}

}  // namespace caravan
