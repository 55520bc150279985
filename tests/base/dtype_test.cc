#include "base/dtype.h"

#include <bit>
#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace caravan {
namespace {

/// IEEE 754-2019, section 3.4, for a format without infinities or NaN: (-1)^s 2^(e - bias) 1.m, and
/// 2^(1 - bias) 0.m where e is 0.
double Decode(int sign, int exponent, int mantissa, int mantissa_bits, int bias) {
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  return sign != 0 ? -magnitude : magnitude;
}

void ExpectSame(double expected, float actual, int bits) {
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(actual)) << "bits " << bits;
    return;
  }
  EXPECT_EQ(expected, static_cast<double>(actual)) << "bits " << bits;
  EXPECT_EQ(std::signbit(expected), std::signbit(actual)) << "bits " << bits;
}

/// As Decode, where the largest exponent means infinity (mantissa 0) or NaN.
double DecodeIeee(int bits, int exponent_bits, int mantissa_bits) {
  const int sign = bits >> (exponent_bits + mantissa_bits);
  const int top = (1 << exponent_bits) - 1;
  const int exponent = (bits >> mantissa_bits) & top;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  if (exponent < top) return Decode(sign, exponent, mantissa, mantissa_bits, top / 2);
  if (mantissa != 0) return std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  return sign != 0 ? -infinity : infinity;
}

TEST(DTypeTest, DecodesEveryFloat16) {
  for (int bits = 0; bits < 65536; ++bits) {
    ExpectSame(DecodeIeee(bits, 5, 10), Float16ToFloat(static_cast<uint16_t>(bits)), bits);
  }
}

TEST(DTypeTest, DecodesEveryBFloat16) {
  for (int bits = 0; bits < 65536; ++bits) {
    ExpectSame(DecodeIeee(bits, 8, 7), BFloat16ToFloat(static_cast<uint16_t>(bits)), bits);
  }
}

TEST(DTypeTest, DecodesEveryFloat8E4M3) {
  for (int bits = 0; bits < 256; ++bits) {
    const double expected = (bits & 0x7f) == 0x7f
                                ? std::numeric_limits<double>::quiet_NaN()
                                : Decode(bits >> 7, (bits >> 3) & 15, bits & 7, 3, 7);
    ExpectSame(expected, Float8E4M3ToFloat(static_cast<uint8_t>(bits)), bits);
  }
  EXPECT_EQ(Float8E4M3ToFloat(0x7e), 448.0f);  // The format's largest value.
}

/// That `encode` rounds to the nearest, ties to even: at every finite code's value and at every
/// middle between two neighbours, and at the floats next to each.
template <typename Code>
void ExpectRoundsToNearestEven(int largest_finite, int sign_bit, float (*decode)(Code),
                               Code (*encode)(float)) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (int code = 0; code <= largest_finite; ++code) {
    for (const int sign : {0, sign_bit}) {
      const Code own = static_cast<Code>(code | sign);
      ASSERT_EQ(encode(decode(own)), own);
      if (code == largest_finite) continue;
      const Code next = static_cast<Code>((code + 1) | sign);
      const double middle = (static_cast<double>(decode(own)) + decode(next)) / 2;
      const float at = static_cast<float>(middle);
      ASSERT_EQ(at, middle);  // A float has a bit more than any of these formats.
      const float away = sign != 0 ? -infinity : infinity;
      ASSERT_EQ(encode(at), code % 2 == 0 ? own : next);
      ASSERT_EQ(encode(std::nextafter(at, -away)), own);
      ASSERT_EQ(encode(std::nextafter(at, away)), next);
      ASSERT_EQ(encode(std::nextafter(decode(own), away)), own);
      ASSERT_EQ(encode(std::nextafter(decode(next), -away)), next);
    }
  }
}

TEST(DTypeTest, RoundsToNearestFloat16) {
  ExpectRoundsToNearestEven<uint16_t>(0x7bff, 0x8000, Float16ToFloat, FloatToFloat16);
}

TEST(DTypeTest, RoundsToNearestBFloat16) {
  ExpectRoundsToNearestEven<uint16_t>(0x7f7f, 0x8000, BFloat16ToFloat, FloatToBFloat16);
}

TEST(DTypeTest, RoundsToNearestFloat8E4M3) {
  ExpectRoundsToNearestEven<uint8_t>(0x7e, 0x80, Float8E4M3ToFloat, FloatToFloat8E4M3);
}

TEST(DTypeTest, OverflowsToInfinityAndSaturatesFloat8E4M3) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(FloatToFloat16(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  for (const float large : {65520.0f, 1e38f, infinity}) {
    EXPECT_EQ(FloatToFloat16(large), 0x7c00);
    EXPECT_EQ(FloatToFloat16(-large), 0xfc00);
  }
  EXPECT_EQ(FloatToBFloat16(0x1.fefffep127f), 0x7f7f);
  for (const float large : {0x1.ffp127f, std::numeric_limits<float>::max(), infinity}) {
    EXPECT_EQ(FloatToBFloat16(large), 0x7f80);
    EXPECT_EQ(FloatToBFloat16(-large), 0xff80);
  }
  for (const float large : {448.0f, 464.0f, 480.0f, 1e38f, infinity}) {
    EXPECT_EQ(FloatToFloat8E4M3(large), 0x7e);
    EXPECT_EQ(FloatToFloat8E4M3(-large), 0xfe);
  }
}

TEST(DTypeTest, KeepsNaN) {
  // Quiet, signalling and with the lowest payload bit only, which no narrower format has.
  for (const uint32_t bits : {0x7fc00000u, 0x7fa00000u, 0x7f800001u, 0xff800001u, 0xffffffffu}) {
    const float nan = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(Float16ToFloat(FloatToFloat16(nan)))) << bits;
    EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(nan)))) << bits;
    EXPECT_TRUE(std::isnan(Float8E4M3ToFloat(FloatToFloat8E4M3(nan)))) << bits;
  }
}

TEST(DTypeTest, HasNameAndSizeOfEach) {
  // Of 256 values. The block formats' as in GGUF: 8.5, 4.5, 2.625, 3.4375, 4.5, 5.5 and 6.5625
  // bits.
  for (const auto& [dtype, name, bytes] : {std::tuple{DType::kF32, "F32", 1024},
                                           {DType::kF16, "F16", 512},
                                           {DType::kBF16, "BF16", 512},
                                           {DType::kF8E4M3, "F8_E4M3", 256},
                                           {DType::kI32, "I32", 1024},
                                           {DType::kQ8_0, "Q8_0", 272},
                                           {DType::kQ4_0, "Q4_0", 144},
                                           {DType::kQ2_K, "Q2_K", 84},
                                           {DType::kQ3_K, "Q3_K", 110},
                                           {DType::kQ4_K, "Q4_K", 144},
                                           {DType::kQ5_K, "Q5_K", 176},
                                           {DType::kQ6_K, "Q6_K", 210}}) {
    EXPECT_EQ(DTypeName(dtype), name);
    EXPECT_EQ(DTypeBytes(dtype, 256), bytes) << name;
    EXPECT_EQ(DTypeBytes(dtype, 0), 0) << name;
    EXPECT_EQ(256 % BlockOf(dtype).values, 0) << name;
    EXPECT_EQ(ParseDType(name), dtype) << name;
  }
  for (const char* name : {"", "f32", "F64", "I64", "BOOL", "F8_E5M2", "F32 "}) {
    EXPECT_EQ(ParseDType(name), std::nullopt) << name;
  }
}

}  // namespace
}  // namespace caravan
