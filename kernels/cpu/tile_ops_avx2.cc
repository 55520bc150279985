// TileOps in AVX2, FMA and F16C. Compiled with those switched on: see row_ops_avx2.cc on inline
// functions.

#include "kernels/cpu/tile_ops.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

#include "kernels/cpu/tile_kernels.h"

namespace caravan {
namespace {

struct Avx2 {
  static constexpr int kRows = 4;
  static constexpr int kChains = 4;
  struct Bytes {
    __m256i low, high;
  };
  struct Floats {
    __m256 low, high;
  };
  struct Ints {
    __m256i low, high;
  };

  static __m256i Load(const void* src) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(src));
  }
  static void Store(void* dst, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(dst), v); }

  static Bytes LoadBytes(const uint8_t* src) { return {Load(src), Load(src + 32)}; }
  static void StoreBytes(uint8_t* dst, Bytes v) {
    Store(dst, v.low);
    Store(dst + 32, v.high);
  }
  static Bytes Or(Bytes a, Bytes b) {
    return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
  }

  template <int kFrom, int kTo, int kWidth>
  static __m256i MoveHalf(__m256i v) {
    const __m256i mask = _mm256_set1_epi8(static_cast<char>(((1 << kWidth) - 1) << kTo));
    if constexpr (kFrom > kTo) v = _mm256_srli_epi16(v, kFrom - kTo);
    if constexpr (kFrom < kTo) v = _mm256_slli_epi16(v, kTo - kFrom);
    return _mm256_and_si256(v, mask);
  }
  template <int kFrom, int kTo, int kWidth>
  static Bytes Move(Bytes v) {
    return {MoveHalf<kFrom, kTo, kWidth>(v.low), MoveHalf<kFrom, kTo, kWidth>(v.high)};
  }

  static __m128i Load128(const uint8_t* src) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(src));
  }
  static Floats LoadHalves(const uint8_t* src) {
    return {_mm256_cvtph_ps(Load128(src)), _mm256_cvtph_ps(Load128(src + 16))};
  }
  static Floats LoadUnsigned(const uint8_t* src) {
    const __m128i v = Load128(src);
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)))};
  }
  static Floats LoadSigned(const uint8_t* src) {
    const __m128i v = Load128(src);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)))};
  }

  static Floats LoadFloats(const float* src) {
    return {_mm256_loadu_ps(src), _mm256_loadu_ps(src + 8)};
  }
  static void StoreFloats(float* dst, Floats v) {
    _mm256_storeu_ps(dst, v.low);
    _mm256_storeu_ps(dst + 8, v.high);
  }
  static Floats Broadcast(float value) {
    const __m256 v = _mm256_set1_ps(value);
    return {v, v};
  }
  static Floats Add(Floats a, Floats b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static Floats Mul(Floats a, Floats b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static Floats Fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static Floats FloatFma(Floats a, Floats b, Floats c) { return Fma(a, b, c); }
  static Floats ToFloats(Ints a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }

  /// Sums of two products as 16-bit integers. maddubs takes one factor unsigned: codes that are
  /// signed lend their sign to the other one. At most 2 * 128 * 127, so nothing saturates.
  template <class Format>
  static __m256i PairSums(__m256i codes, __m256i x) {
    if constexpr (Format::kSigned) {
      return _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes));
    }
    return _mm256_maddubs_epi16(codes, x);
  }

  template <class Format, int kGroups, int T>
  static void Dots(const uint8_t* lines, const ActivationBlock* const* x, int sub, Ints* dots) {
    constexpr bool kWhole = kGroups * 4 == kActivationBlock;
    // Lines whose sums fit 16 bits together.
    constexpr int kFit = 32767 / (2 * 127 * Format::kMaxCode);
    constexpr int kTogether = kFit < kGroups ? (kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1) : kGroups;
    const __m256i ones = _mm256_set1_epi16(1);
    for (int t = 0; t < T; ++t) {
      const int32_t start =
          Format::kOffset == 0
              ? 0
              : Format::kOffset * (kWhole ? x[t]->minus_sum : x[t]->minus_half_sums[sub]);
      dots[t].low = _mm256_set1_epi32(start);
      dots[t].high = dots[t].low;
    }
    for (int first = 0; first < kGroups; first += kTogether) {
      Ints sums[T];
      for (int g = first; g < first + kTogether; ++g) {
        const Bytes codes = LoadBytes(lines + g * kTileLine);
        for (int t = 0; t < T; ++t) {
          int32_t four;
          __builtin_memcpy(&four, x[t]->codes + (sub * kGroups + g) * 4, sizeof(four));
          const __m256i factors = _mm256_set1_epi32(four);
          const __m256i low = PairSums<Format>(codes.low, factors);
          const __m256i high = PairSums<Format>(codes.high, factors);
          sums[t].low = g == first ? low : _mm256_add_epi16(sums[t].low, low);
          sums[t].high = g == first ? high : _mm256_add_epi16(sums[t].high, high);
        }
      }
      for (int t = 0; t < T; ++t) {
        dots[t].low = _mm256_add_epi32(dots[t].low, _mm256_madd_epi16(sums[t].low, ones));
        dots[t].high = _mm256_add_epi32(dots[t].high, _mm256_madd_epi16(sums[t].high, ones));
      }
    }
  }

  static uint32_t MaxMagnitude(const float* x) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256i max = _mm256_and_si256(Load(x), mask);
    for (int i = 8; i < kActivationBlock; i += 8) {
      max = _mm256_max_epi32(max, _mm256_and_si256(Load(x + i), mask));
    }
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
  }

  static void RoundQuotients(const float* x, float d, int8_t* codes) {
    const __m256 divisor = _mm256_set1_ps(d);
    __m256i eight[4];
    for (int i = 0; i < 4; ++i) {
      eight[i] = _mm256_cvtps_epi32(_mm256_div_ps(_mm256_loadu_ps(x + 8 * i), divisor));
    }
    // The packs work within halves: fours come out as 0 2 4 6 1 3 5 7.
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(eight[0], eight[1]),
                                              _mm256_packs_epi32(eight[2], eight[3]));
    Store(codes, _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  }
};

constexpr TileOps kOps = MakeTileOps<Avx2>(CpuIsa::kAvx2);

}  // namespace

const TileOps* Avx2TileOps() { return &kOps; }

}  // namespace caravan

#else

namespace caravan {

const TileOps* Avx2TileOps() { return nullptr; }

}  // namespace caravan

#endif
