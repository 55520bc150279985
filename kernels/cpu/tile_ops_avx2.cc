// TileOps in AVX2, FMA and F16C. Compiled with those switched on: see row_ops_avx2.cc on inline
// functions.

#include "kernels/cpu/tile_ops.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

#include <type_traits>

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
  static __m256 WidenBF16(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static Floats LoadBFloats(const uint8_t* src) {
    return {WidenBF16(Load128(src)), WidenBF16(Load128(src + 16))};
  }

  /// E4M3's exponent and mantissa in a binary16's place are the value times 2^-8; its two NaNs, all
  /// ones there, are made binary16's.
  static Floats LoadF8E4M3(const uint8_t* src) {
    const __m256i moved = _mm256_slli_epi16(_mm256_cvtepi8_epi16(Load128(src)), 7);
    const __m256i all_ones = _mm256_set1_epi16(0x3f80);
    const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(moved, all_ones), all_ones);
    const __m256i half =
        _mm256_or_si256(_mm256_and_si256(moved, _mm256_set1_epi16(static_cast<int16_t>(0xbf80))),
                        _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7e00)));
    const __m256 factor = _mm256_set1_ps(256);
    return {_mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(half)), factor),
            _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1)), factor)};
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

  /// Signed codes w for many rows: |w|, and all ones where w is negative. x ^ -1 is -x - 1, so
  /// |w| * (x ^ sign) = w * x - (w < 0 ? |w| : 0), and what is missing depends on w alone. Unlike
  /// vpsignb, an exclusive or is not bound to the units that multiply.
  struct SignedLine {
    Bytes magnitudes, signs;
  };
  struct SignedPart {
    SignedLine lines[8];
    Ints missing;  // sums of |w| over the negative w of 32 columns

    const SignedLine& operator()(int i) const { return lines[i]; }
  };
  struct SignedCodes {
    SignedPart parts[TileScales::kColumns / kActivationBlock];

    template <class LoadLine>
    void Unpack(int64_t part, const LoadLine& line) {
      const __m256i zero = _mm256_setzero_si256();
      Ints pairs = {zero, zero};
      for (int i = 0; i < 8; ++i) {
        const Bytes w = line(i);
        SignedLine& out = parts[part].lines[i];
        out.magnitudes = {_mm256_abs_epi8(w.low), _mm256_abs_epi8(w.high)};
        out.signs = {_mm256_cmpgt_epi8(zero, w.low), _mm256_cmpgt_epi8(zero, w.high)};
        // Minus signs is 1 or 0: at most 8 * 2 * 128 in 16 bits.
        pairs.low =
            _mm256_sub_epi16(pairs.low, _mm256_maddubs_epi16(out.magnitudes.low, out.signs.low));
        pairs.high =
            _mm256_sub_epi16(pairs.high, _mm256_maddubs_epi16(out.magnitudes.high, out.signs.high));
      }
      const __m256i ones = _mm256_set1_epi16(1);
      parts[part].missing = {_mm256_madd_epi16(pairs.low, ones),
                             _mm256_madd_epi16(pairs.high, ones)};
    }
    const SignedPart& Part(int64_t part) const { return parts[part]; }
  };
  template <class Format>
  using Codes = std::conditional_t<Format::kSigned, SignedCodes, ByteCodes<Avx2>>;

  /// Sums of two products as 16-bit integers. maddubs takes one factor unsigned: codes that are
  /// signed lend their sign to the other one. Nothing saturates, as 2 * 128 * 127 and
  /// -2 * 128 * 128 fit.
  template <class Format>
  static Ints PairSums(const Bytes& codes, __m256i x) {
    if constexpr (Format::kSigned) {
      return {_mm256_maddubs_epi16(_mm256_abs_epi8(codes.low), _mm256_sign_epi8(x, codes.low)),
              _mm256_maddubs_epi16(_mm256_abs_epi8(codes.high), _mm256_sign_epi8(x, codes.high))};
    }
    return {_mm256_maddubs_epi16(codes.low, x), _mm256_maddubs_epi16(codes.high, x)};
  }
  template <class Format>
  static Ints PairSums(const SignedLine& w, __m256i x) {
    return {_mm256_maddubs_epi16(w.magnitudes.low, _mm256_xor_si256(x, w.signs.low)),
            _mm256_maddubs_epi16(w.magnitudes.high, _mm256_xor_si256(x, w.signs.high))};
  }

  /// What a dot product begins with.
  template <class Format>
  static Ints Start(const SignedPart& part, int32_t) {
    return part.missing;
  }
  template <class Format, class LoadLine>
  static Ints Start(const LoadLine&, int32_t minus_sum) {
    const __m256i start = _mm256_set1_epi32(Format::kOffset == 0 ? 0 : Format::kOffset * minus_sum);
    return {start, start};
  }

  /// Keeps the compiler from moving sums past here. GCC would take all products of an unrolled loop
  /// first and add them up as a tree, which takes several times the registers that there are.
  static void Pin(Ints& v) { asm("" : "+x"(v.low), "+x"(v.high)); }

  template <class Format, int kLines, int T, class LoadLine>
  static void Dots(const LoadLine& line, const ActivationBlock* const* x, int sub, Ints* dots) {
    constexpr bool kWhole = kLines * 4 == kActivationBlock;
    // Lines whose sums fit 16 bits together.
    constexpr int kFit = 32767 / (2 * 127 * Format::kMaxCode);
    constexpr int kTogether = kFit >= kLines ? kLines : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
    const __m256i ones = _mm256_set1_epi16(1);
    for (int t = 0; t < T; ++t) {
      dots[t] = Start<Format>(line, kWhole ? x[t]->minus_sum : x[t]->minus_half_sums[sub]);
    }
    Ints sums[T];
#pragma GCC unroll 8
    for (int g = 0; g < kLines; ++g) {
      const auto& codes = line(sub * kLines + g);
      for (int t = 0; t < T; ++t) {
        int32_t four;
        __builtin_memcpy(&four, x[t]->codes + (sub * kLines + g) * 4, sizeof(four));
        const Ints pairs = PairSums<Format>(codes, _mm256_set1_epi32(four));
        sums[t] = g % kTogether == 0 ? pairs
                                     : Ints{_mm256_add_epi16(sums[t].low, pairs.low),
                                            _mm256_add_epi16(sums[t].high, pairs.high)};
        if (g % kTogether < kTogether - 1) {
          Pin(sums[t]);
          continue;
        }
        dots[t].low = _mm256_add_epi32(dots[t].low, _mm256_madd_epi16(sums[t].low, ones));
        dots[t].high = _mm256_add_epi32(dots[t].high, _mm256_madd_epi16(sums[t].high, ones));
        Pin(dots[t]);
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
