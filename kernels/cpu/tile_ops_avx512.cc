// TileOps in AVX-512 with VNNI. Compiled with those switched on: see row_ops_avx2.cc on inline
// functions.

#include "kernels/cpu/tile_ops.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)

#include <immintrin.h>

#include "kernels/cpu/tile_kernels.h"

namespace caravan {
namespace {

struct Avx512 {
  static constexpr int kRows = 8;
  static constexpr int kChains = 8;
  using Bytes = __m512i;
  using Floats = __m512;
  using Ints = __m512i;
  template <class Format>
  using Codes = ByteCodes<Avx512>;

  static Bytes LoadBytes(const uint8_t* src) { return _mm512_loadu_si512(src); }
  static void StoreBytes(uint8_t* dst, Bytes v) { _mm512_storeu_si512(dst, v); }
  static Bytes Or(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }

  template <int kFrom, int kTo, int kWidth>
  static Bytes Move(Bytes v) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>(((1 << kWidth) - 1) << kTo));
    if constexpr (kFrom > kTo) v = _mm512_srli_epi16(v, kFrom - kTo);
    if constexpr (kFrom < kTo) v = _mm512_slli_epi16(v, kTo - kFrom);
    return _mm512_and_si512(v, mask);
  }

  static __m128i Load128(const uint8_t* src) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(src));
  }
  static Floats LoadHalves(const uint8_t* src) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(src)));
  }
  static Floats LoadBFloats(const uint8_t* src) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }

  /// As the AVX2 table's.
  static Floats LoadF8E4M3(const uint8_t* src) {
    const __m256i moved = _mm256_slli_epi16(_mm256_cvtepi8_epi16(Load128(src)), 7);
    const __m256i all_ones = _mm256_set1_epi16(0x3f80);
    const __mmask16 is_nan = _mm256_cmpeq_epi16_mask(_mm256_and_si256(moved, all_ones), all_ones);
    const __m256i value = _mm256_and_si256(moved, _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
    return _mm512_mul_ps(
        _mm512_cvtph_ps(_mm256_mask_mov_epi16(value, is_nan, _mm256_set1_epi16(0x7e00))),
        _mm512_set1_ps(256));
  }

  static Floats LoadUnsigned(const uint8_t* src) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(Load128(src)));
  }
  static Floats LoadSigned(const uint8_t* src) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(Load128(src)));
  }

  static Floats LoadFloats(const float* src) { return _mm512_loadu_ps(src); }
  static void StoreFloats(float* dst, Floats v) { _mm512_storeu_ps(dst, v); }
  static Floats Broadcast(float value) { return _mm512_set1_ps(value); }
  static Floats Add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats Mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats Fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats FloatFma(Floats a, Floats b, Floats c) { return Fma(a, b, c); }
  static Floats ToFloats(Ints a) { return _mm512_cvtepi32_ps(a); }

  /// As the AVX2 table's.
  static void Pin(Ints& v) { asm("" : "+v"(v)); }

  template <class Format, int kLines, int T, class LoadLine>
  static void Dots(const LoadLine& line, const ActivationBlock* const* x, int sub, Ints* dots) {
    constexpr bool kWhole = kLines * 4 == kActivationBlock;
    // dpbusd takes one factor unsigned: signed codes are made so by adding 128.
    constexpr int kOffset = Format::kSigned ? 128 : Format::kOffset;
    constexpr int kShift = kOffset == 0 ? 0 : __builtin_ctz(kOffset);
    static_assert(kOffset == 0 || kOffset == 1 << kShift);
    for (int t = 0; t < T; ++t) {
      const int32_t minus_sum = kWhole ? x[t]->minus_sum : x[t]->minus_half_sums[sub];
      dots[t] = kOffset == 0 ? _mm512_setzero_si512()
                             : _mm512_slli_epi32(_mm512_set1_epi32(minus_sum), kShift);
    }
#pragma GCC unroll 8
    for (int g = 0; g < kLines; ++g) {
      Bytes codes = line(sub * kLines + g);
      if (Format::kSigned) codes = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
      for (int t = 0; t < T; ++t) {
        int32_t four;
        __builtin_memcpy(&four, x[t]->codes + (sub * kLines + g) * 4, sizeof(four));
        dots[t] = _mm512_dpbusd_epi32(dots[t], codes, _mm512_set1_epi32(four));
        Pin(dots[t]);
      }
    }
  }

  static uint32_t MaxMagnitude(const float* x) {
    const __m512i mask = _mm512_set1_epi32(0x7fffffff);
    const __m512i low = _mm512_and_si512(_mm512_loadu_si512(x), mask);
    const __m512i high = _mm512_and_si512(_mm512_loadu_si512(x + 16), mask);
    return static_cast<uint32_t>(_mm512_reduce_max_epi32(_mm512_max_epi32(low, high)));
  }

  static void RoundQuotients(const float* x, float d, int8_t* codes) {
    const __m512 divisor = _mm512_set1_ps(d);
    for (int i = 0; i < kActivationBlock; i += 16) {
      const __m512i rounded = _mm512_cvtps_epi32(_mm512_div_ps(_mm512_loadu_ps(x + i), divisor));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(rounded));
    }
  }
};

constexpr TileOps kOps = MakeTileOps<Avx512>(CpuIsa::kAvx512);

}  // namespace

const TileOps* Avx512TileOps() { return &kOps; }

}  // namespace caravan

#else

namespace caravan {

const TileOps* Avx512TileOps() { return nullptr; }

}  // namespace caravan

#endif
