// RowOps in AVX2, FMA and F16C. Compiled with those switched on, so nothing here may use an inline
// function that other files also use: the linker could keep this file's copy for CPUs that lack
// them. Tails shorter than a vector go through masks, or a padded copy, and the same instructions.

#include "kernels/cpu/row_ops.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels/cpu/row_sums.h"

namespace caravan {
namespace {

constexpr int64_t kLanes = 8;

/// All ones in the first `count` lanes, count < 8.
inline __m256i FirstLanes(int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}

inline float SumLanes(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// --- decoding ------------------------------------------------------------------------------------

constexpr int64_t kDecodeStep = 16;

/// Sixteen elements, in order.
struct Sixteen {
  __m256 low;
  __m256 high;
};

/// Runs kLoad, which takes 16 elements and gives their values divided by kFactor, over n.
template <int64_t kElementBytes, int kFactor, Sixteen (*kLoad)(const unsigned char*)>
void Decode(const void* src, int64_t n, float scale, float* dst) {
  const auto* bytes = static_cast<const unsigned char*>(src);
  const __m256 factors = _mm256_set1_ps(scale * kFactor);
  int64_t i = 0;
  for (; i + kDecodeStep <= n; i += kDecodeStep) {
    const Sixteen values = kLoad(bytes + i * kElementBytes);
    _mm256_storeu_ps(dst + i, _mm256_mul_ps(values.low, factors));
    _mm256_storeu_ps(dst + i + kLanes, _mm256_mul_ps(values.high, factors));
  }
  if (i == n) return;
  unsigned char padded[kDecodeStep * kElementBytes] = {};
  std::memcpy(padded, bytes + i * kElementBytes, (n - i) * kElementBytes);
  const Sixteen values = kLoad(padded);
  float decoded[kDecodeStep];
  _mm256_storeu_ps(decoded, _mm256_mul_ps(values.low, factors));
  _mm256_storeu_ps(decoded + kLanes, _mm256_mul_ps(values.high, factors));
  std::memcpy(dst + i, decoded, (n - i) * sizeof(float));
}

inline __m128i Load128(const unsigned char* src) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(src));
}

inline __m256i Load256(const unsigned char* src) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src));
}

inline Sixteen LoadF32(const unsigned char* src) {
  return {_mm256_castsi256_ps(Load256(src)), _mm256_castsi256_ps(Load256(src + 32))};
}

inline Sixteen LoadF16(const unsigned char* src) {
  return {_mm256_cvtph_ps(Load128(src)), _mm256_cvtph_ps(Load128(src + 16))};
}

inline __m256 WidenBF16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline Sixteen LoadBF16(const unsigned char* src) {
  return {WidenBF16(Load128(src)), WidenBF16(Load128(src + 16))};
}

// E4M3's exponent and mantissa, moved into a binary16's place, are the value times 2^-8 (biases 7
// and 15), subnormals included; 0x7f and 0xff, which would be 480, become NaNs.
inline Sixteen LoadF8E4M3(const unsigned char* src) {
  const __m256i moved = _mm256_slli_epi16(_mm256_cvtepi8_epi16(Load128(src)), 7);
  const __m256i all_ones = _mm256_set1_epi16(0x3f80);
  const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(moved, all_ones), all_ones);
  const __m256i half =
      _mm256_or_si256(_mm256_and_si256(moved, _mm256_set1_epi16(static_cast<int16_t>(0xbf80))),
                      _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7e00)));
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(half)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
}
constexpr int kF8E4M3Factor = 256;

constexpr int64_t kQ8_0Values = 32;  // a block: a binary16, then as many int8 codes
constexpr int64_t kQ8_0Bytes = 34;

void DecodeQ8_0(const void* src, int64_t n, float scale, float* dst) {
  const auto* bytes = static_cast<const unsigned char*>(src);
  for (int64_t i = 0; i < n; i += kQ8_0Values, bytes += kQ8_0Bytes) {
    uint16_t half;
    std::memcpy(&half, bytes, sizeof(half));
    const __m256 d = _mm256_set1_ps(_cvtsh_ss(half) * scale);
    for (int64_t j = 0; j < kQ8_0Values; j += kLanes) {
      const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + 2 + j));
      _mm256_storeu_ps(dst + i + j,
                       _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), d));
    }
  }
}

// --- dot products --------------------------------------------------------------------------------

constexpr int64_t kDotColumns = 4;  // rows of w at a time
constexpr int64_t kDotRows = 3;     // rows of x at a time: 12 sums, 4 + 1 operands, 16 registers

/// Dot products of kRows rows of x with four of w: a sum of 8 lanes for each pair.
template <int64_t kRows>
void DotBlock(const float* const* w, int64_t num_w, const float* const* x, int64_t n, float* out,
              int64_t out_stride) {
  // Short of four, the last row stands in for the missing ones; its extra results are dropped.
  const float* column[kDotColumns];
  for (int64_t j = 0; j < kDotColumns; ++j) column[j] = w[j < num_w ? j : num_w - 1];
  __m256 sums[kRows][kDotColumns];
  for (auto& row : sums) {
    for (__m256& sum : row) sum = _mm256_setzero_ps();
  }
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    __m256 b[kDotColumns];
    for (int64_t j = 0; j < kDotColumns; ++j) b[j] = _mm256_loadu_ps(column[j] + i);
    for (int64_t r = 0; r < kRows; ++r) {
      const __m256 a = _mm256_loadu_ps(x[r] + i);
      for (int64_t j = 0; j < kDotColumns; ++j) {
        sums[r][j] = _mm256_fmadd_ps(a, b[j], sums[r][j]);
      }
    }
  }
  if (i < n) {
    const __m256i mask = FirstLanes(n - i);
    for (int64_t r = 0; r < kRows; ++r) {
      const __m256 a = _mm256_maskload_ps(x[r] + i, mask);
      for (int64_t j = 0; j < kDotColumns; ++j) {
        sums[r][j] = _mm256_fmadd_ps(a, _mm256_maskload_ps(column[j] + i, mask), sums[r][j]);
      }
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t j = 0; j < num_w && j < kDotColumns; ++j) {
      out[r * out_stride + j] += SumLanes(sums[r][j]);
    }
  }
}

void Dots(const float* const* w, int64_t num_w, const float* const* x, int64_t num_x, int64_t n,
          float* out, int64_t out_stride) {
  int64_t i = 0;
  while (i < num_x) {
    const int64_t rows = num_x - i < kDotRows ? num_x - i : kDotRows;
    const auto block = rows == 3 ? DotBlock<3> : rows == 2 ? DotBlock<2> : DotBlock<1>;
    for (int64_t j = 0; j < num_w; j += kDotColumns) {
      block(w + j, num_w - j, x + i, n, out + i * out_stride + j, out_stride);
    }
    i += rows;
  }
}

float SumSquares(const float* x, int64_t n) {
  float sum = 0;
  DotBlock<1>(&x, 1, &x, n, &sum, 1);
  return sum;
}

// --- sums of rows --------------------------------------------------------------------------------

struct Avx2 {
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kOuts = 6;
  static constexpr int64_t kVectors = 2;  // 12 sums, 2 + 1 operands, 16 registers
  using Floats = __m256;

  static Floats Load(const float* src) { return _mm256_loadu_ps(src); }
  static void Store(float* dst, Floats v) { _mm256_storeu_ps(dst, v); }
  static Floats Fill(float value) { return _mm256_set1_ps(value); }
  static Floats FusedMultiplyAdd(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats LoadFirst(const float* src, int64_t count) {
    return _mm256_maskload_ps(src, FirstLanes(count));
  }
  static void StoreFirst(float* dst, int64_t count, Floats v) {
    _mm256_maskstore_ps(dst, FirstLanes(count), v);
  }
};

void Axpy(float a, const float* x, int64_t n, float* y) {
  WeightedSums<Avx2>(&a, 1, &x, 1, n, y, n, 1);
}

// --- softmax -------------------------------------------------------------------------------------

float Max(const float* x, int64_t n) {
  __m256 max = _mm256_set1_ps(-INFINITY);
  int64_t i = 0;
  // Of two values, one NaN, the instruction gives the second.
  for (; i + kLanes <= n; i += kLanes) max = _mm256_max_ps(_mm256_loadu_ps(x + i), max);
  if (i < n) {
    const __m256i mask = FirstLanes(n - i);
    const __m256 rest =
        _mm256_blendv_ps(max, _mm256_maskload_ps(x + i, mask), _mm256_castsi256_ps(mask));
    max = _mm256_max_ps(rest, max);
  }
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/// See Exp in row_ops_portable.cc.
inline __m256 Exp(__m256 x) {
  const __m256 rounder = _mm256_set1_ps(kExp.rounder);
  const __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(kExp.log2_e), rounder);
  const __m256 n = _mm256_sub_ps(shifted, rounder);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kExp.ln2_high), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kExp.ln2_low), r);
  __m256 p = _mm256_set1_ps(kExp.coefficients[0]);
  for (int i = 1; i < kExp.kCoefficients; ++i) {
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExp.coefficients[i]));
  }
  const __m256i exponent = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23),
                                            _mm256_set1_epi32(0x3f800000));
  const __m256 value = _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
  // Not less, or NaN.
  return _mm256_and_ps(value, _mm256_cmp_ps(x, _mm256_set1_ps(kExp.smallest), _CMP_NLT_UQ));
}

float ExpOfDifferences(float scale, float max, int64_t n, float* x) {
  const __m256 scales = _mm256_set1_ps(scale);
  const __m256 maxima = _mm256_set1_ps(max);
  __m256 sum = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const __m256 value = Exp(_mm256_sub_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), scales), maxima));
    _mm256_storeu_ps(x + i, value);
    sum = _mm256_add_ps(sum, value);
  }
  if (i < n) {
    const __m256i mask = FirstLanes(n - i);
    const __m256 value =
        Exp(_mm256_sub_ps(_mm256_mul_ps(_mm256_maskload_ps(x + i, mask), scales), maxima));
    _mm256_maskstore_ps(x + i, mask, value);
    sum = _mm256_add_ps(sum, _mm256_and_ps(value, _mm256_castsi256_ps(mask)));
  }
  return SumLanes(sum);
}

/// An 8 x 8 piece of Transpose.
inline void TransposeBlock(const float* const* rows, int64_t column, float* out,
                           int64_t out_stride) {
  __m256 in[8], pairs[8], fours[8];
  for (int i = 0; i < 8; ++i) in[i] = _mm256_loadu_ps(rows[i] + column);
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(in[i], in[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(in[i], in[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int half = 0; half < 2; ++half) {
      fours[i + 2 * half] = _mm256_shuffle_ps(pairs[i + half], pairs[i + 2 + half], 0x44);
      fours[i + 2 * half + 1] = _mm256_shuffle_ps(pairs[i + half], pairs[i + 2 + half], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * out_stride, _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * out_stride,
                     _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31));
  }
}

void Transpose(const float* const* rows, int64_t num_rows, int64_t n, float* out,
               int64_t out_stride) {
  int64_t r = 0;
  for (; r + kLanes <= num_rows; r += kLanes) {
    int64_t c = 0;
    for (; c + kLanes <= n; c += kLanes) {
      TransposeBlock(rows + r, c, out + c * out_stride + r, out_stride);
    }
    for (; c < n; ++c) {
      for (int64_t i = 0; i < kLanes; ++i) out[c * out_stride + r + i] = rows[r + i][c];
    }
  }
  for (; r < num_rows; ++r) {
    for (int64_t c = 0; c < n; ++c) out[c * out_stride + r] = rows[r][c];
  }
}

// --- element by element --------------------------------------------------------------------------

void ScaleBy(const float* x, float scale, const float* weight, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void Scale(float a, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] *= a;
}

constexpr RowOps kOps = {
    .isa = CpuIsa::kAvx2,
    .name = "avx2",
    .decode_f32 = Decode<4, 1, LoadF32>,
    .decode_f16 = Decode<2, 1, LoadF16>,
    .decode_bf16 = Decode<2, 1, LoadBF16>,
    .decode_f8e4m3 = Decode<1, kF8E4M3Factor, LoadF8E4M3>,
    .decode_q8_0 = DecodeQ8_0,
    .dots = Dots,
    .weighted_sums = WeightedSums<Avx2>,
    .sum_squares = SumSquares,
    .scale_by = ScaleBy,
    .axpy = Axpy,
    .scale = Scale,
    .max = Max,
    .exp_of_differences = ExpOfDifferences,
    .transpose = Transpose,
};

}  // namespace

const RowOps* Avx2RowOps() { return &kOps; }

}  // namespace caravan

#else

namespace caravan {

const RowOps* Avx2RowOps() { return nullptr; }

}  // namespace caravan

#endif
