// TileOps in plain C++, in loops that a compiler can vectorise.

#include <array>
#include <cmath>
#include <cstring>

#include "kernels/cpu/tile_kernels.h"

namespace caravan {
namespace {

struct Portable {
  static constexpr int kRows = 4;
  static constexpr int kChains = 4;
  using Bytes = std::array<uint8_t, 64>;
  using Floats = std::array<float, 16>;
  using Ints = std::array<int32_t, 16>;
  template <class Format>
  using Codes = ByteCodes<Portable>;

  static Bytes LoadBytes(const uint8_t* src) {
    Bytes v;
    std::memcpy(v.data(), src, sizeof(v));
    return v;
  }
  static void StoreBytes(uint8_t* dst, const Bytes& v) { std::memcpy(dst, v.data(), sizeof(v)); }

  static Bytes Or(const Bytes& a, const Bytes& b) {
    Bytes v;
    for (int i = 0; i < 64; ++i) v[i] = a[i] | b[i];
    return v;
  }

  template <int kFrom, int kTo, int kWidth>
  static Bytes Move(const Bytes& a) {
    Bytes v;
    for (int i = 0; i < 64; ++i) {
      v[i] = static_cast<uint8_t>((a[i] >> kFrom & ((1 << kWidth) - 1)) << kTo);
    }
    return v;
  }

  static Floats Decode(RowOps::Decode decode, const uint8_t* src) {
    Floats v;
    decode(src, 16, 1, v.data());
    return v;
  }
  static Floats LoadHalves(const uint8_t* src) { return Decode(PortableRowOps().decode_f16, src); }
  static Floats LoadBFloats(const uint8_t* src) {
    return Decode(PortableRowOps().decode_bf16, src);
  }
  static Floats LoadF8E4M3(const uint8_t* src) {
    return Decode(PortableRowOps().decode_f8e4m3, src);
  }

  static Floats LoadUnsigned(const uint8_t* src) {
    Floats v;
    for (int i = 0; i < 16; ++i) v[i] = src[i];
    return v;
  }

  static Floats LoadSigned(const uint8_t* src) {
    Floats v;
    for (int i = 0; i < 16; ++i) v[i] = static_cast<int8_t>(src[i]);
    return v;
  }

  static Floats LoadFloats(const float* src) {
    Floats v;
    std::memcpy(v.data(), src, sizeof(v));
    return v;
  }
  static void StoreFloats(float* dst, const Floats& v) { std::memcpy(dst, v.data(), sizeof(v)); }

  static Floats Broadcast(float value) {
    Floats v;
    v.fill(value);
    return v;
  }

  static Floats Add(const Floats& a, const Floats& b) {
    Floats v;
    for (int i = 0; i < 16; ++i) v[i] = a[i] + b[i];
    return v;
  }

  static Floats Mul(const Floats& a, const Floats& b) {
    Floats v;
    for (int i = 0; i < 16; ++i) v[i] = a[i] * b[i];
    return v;
  }

  /// A call of the C library where the CPU lacks the instruction; one for 16 or 32 products.
  static Floats Fma(const Floats& a, const Floats& b, const Floats& c) {
    Floats v;
    for (int i = 0; i < 16; ++i) v[i] = std::fma(a[i], b[i], c[i]);
    return v;
  }

  /// For each product, where such a call would cost too much.
  static Floats FloatFma(const Floats& a, const Floats& b, const Floats& c) {
    Floats v;
    for (int i = 0; i < 16; ++i) v[i] = a[i] * b[i] + c[i];
    return v;
  }

  static Floats ToFloats(const Ints& a) {
    Floats v;
    for (int i = 0; i < 16; ++i) v[i] = static_cast<float>(a[i]);
    return v;
  }

  template <class Format, int kLines, int T, class LoadLine>
  static void Dots(const LoadLine& line, const ActivationBlock* const* x, int sub, Ints* dots) {
    constexpr bool kWhole = kLines * 4 == kActivationBlock;
    for (int t = 0; t < T; ++t) {
      dots[t].fill(Format::kOffset * (kWhole ? x[t]->minus_sum : x[t]->minus_half_sums[sub]));
      for (int g = 0; g < kLines; ++g) {
        const Bytes bytes = line(sub * kLines + g);
        const int8_t* codes = x[t]->codes + (sub * kLines + g) * 4;
        for (int r = 0; r < 16; ++r) {
          for (int i = 0; i < 4; ++i) {
            const uint8_t byte = bytes[4 * r + i];
            dots[t][r] += (Format::kSigned ? static_cast<int8_t>(byte) : byte) * codes[i];
          }
        }
      }
    }
  }

  static uint32_t MaxMagnitude(const float* x) {
    uint32_t max = 0;
    for (int i = 0; i < kActivationBlock; ++i) {
      uint32_t bits;
      std::memcpy(&bits, x + i, sizeof(bits));
      bits &= 0x7fffffff;
      max = bits > max ? bits : max;
    }
    return max;
  }

  static void RoundQuotients(const float* x, float d, int8_t* codes) {
    // Above it, floats are integers: adding it rounds, ties to even.
    constexpr float kRounder = 0x1.8p23f;
    for (int i = 0; i < kActivationBlock; ++i) {
      codes[i] = static_cast<int8_t>(x[i] / d + kRounder - kRounder);
    }
  }
};

}  // namespace

const TileOps& PortableTileOps() {
  static constexpr TileOps kOps = MakeTileOps<Portable>(CpuIsa::kPortable);
  return kOps;
}

}  // namespace caravan
