#ifndef CARAVAN_BASE_DTYPE_H_
#define CARAVAN_BASE_DTYPE_H_

// The number formats that tensors are stored in, and their conversion to float and back. The way
// back rounds to the nearest, ties to even, subnormals included; -0 stays -0 and NaN becomes a NaN.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace caravan {

enum class DType : uint8_t {
  kF32,
  kF16,     // IEEE 754 binary16
  kBF16,    // the upper half of a float
  kF8E4M3,  // OCP FP8 E4M3 ("fn": no infinities, 0x7f and 0xff are NaN)
  kI32,
  // GGUF's block formats: consecutive values of a row, stored together (kernels/quant/blocks.h).
  kQ4_0,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};

/// The smallest piece that stands for itself: `values` consecutive values of a row, in `bytes`.
struct DTypeBlock {
  int64_t values;  // 1 but for the block formats
  int64_t bytes;
};
DTypeBlock BlockOf(DType dtype);

/// Bytes of `count` consecutive values. REQUIRES: count is a multiple of BlockOf(dtype).values.
int64_t DTypeBytes(DType dtype, int64_t count);

/// As safetensors and GGUF spell it: "F32", "F16", "BF16", "F8_E4M3", "I32", "Q4_K", ...
absl::string_view DTypeName(DType dtype);
std::optional<DType> ParseDType(absl::string_view name);

inline float BFloat16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

/// Exact, subnormals included.
inline float Float16ToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide_exponent = exponent == 0x1fu ? 0xffu : exponent + (127 - 15);
  return std::bit_cast<float>(sign | wide_exponent << 23 | mantissa << 13);
}

/// Exact, subnormals included.
inline float Float8E4M3ToFloat(uint8_t bits) {
  const uint32_t exponent = (bits >> 3) & 0xfu;
  const uint32_t mantissa = bits & 0x7u;
  float magnitude;
  if (exponent == 0xfu && mantissa == 0x7u) {
    magnitude = std::bit_cast<float>(0x7fc00000u);
  } else if (exponent == 0) {  // zero or subnormal: mantissa * 2^-9
    magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  } else {
    magnitude = std::bit_cast<float>((exponent + (127 - 7)) << 23 | mantissa << 20);
  }
  return (bits & 0x80u) != 0 ? -magnitude : magnitude;
}

/// A non-negative float's code in a format of kMantissaBits and an exponent of bias kBias, as if
/// its exponent had no end. `magnitude`: the float's bits, not a NaN's.
template <int kMantissaBits, int kBias>
uint32_t RoundMagnitude(uint32_t magnitude) {
  constexpr int kDropped = 23 - kMantissaBits;
  constexpr uint32_t kBiasChange = static_cast<uint32_t>(127 - kBias) << 23;
  if (magnitude < kBiasChange + (1u << 23)) {
    // The step of floats from this one on is that of the subnormal results.
    constexpr uint32_t kShifter = static_cast<uint32_t>(128 - kBias + kDropped) << 23;
    return std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) +
                                   std::bit_cast<float>(kShifter)) -
           kShifter;
  }
  constexpr uint32_t kJustBelowHalf = (1u << (kDropped - 1)) - 1;
  return (magnitude - kBiasChange + kJustBelowHalf + (magnitude >> kDropped & 1u)) >> kDropped;
}

/// From 65520 (65504, the largest, and half a step) on: infinity.
inline uint16_t FloatToFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t half = magnitude > 0x7f800000u
                            ? 0x7e00u
                            : std::min(RoundMagnitude<10, 15>(magnitude), uint32_t{0x7c00});
  return static_cast<uint16_t>(sign | half);
}

/// What lies beyond the largest binary16 becomes it: for a FloatToFloat16 that gives no infinity.
inline float SaturateToFloat16(float value) { return std::clamp(value, -65504.0f, 65504.0f); }

/// From half a step above the largest on: infinity.
inline uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/// Saturates: from 448 on, infinity included, 448.
inline uint8_t FloatToFloat8E4M3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 24 & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t code =
      magnitude > 0x7f800000u ? 0x7fu : std::min(RoundMagnitude<3, 7>(magnitude), uint32_t{0x7e});
  return static_cast<uint8_t>(sign | code);
}

}  // namespace caravan

#endif  // CARAVAN_BASE_DTYPE_H_
