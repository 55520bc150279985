#ifndef CARAVAN_KERNELS_QUANT_BLOCKS_H_
#define CARAVAN_KERNELS_QUANT_BLOCKS_H_

// GGUF's block formats, bit by bit. A row of a matrix is a run of blocks, each of which holds
// kValues consecutive values in kValues / kSubValues sub-blocks of kSubValues each:
//
//   value i = d * scale of its sub-block * code of i - dmin * min of its sub-block
//
// where d and dmin are binary16 and the rest are small integers. Formats without minima have
// dmin = 0, and those with one sub-block have scale = 1. Bits are counted from the lowest,
// multi-byte fields are little-endian, and no block needs alignment.
//
//   format  bits a value  values, a sub-block  code         scale        min
//   Q8_0    8.5           32, 32               -128 .. 127  1            -
//   Q4_0    4.5           32, 32               -8 .. 7      1            -
//   Q6_K    6.5625        256, 16              -32 .. 31    -128 .. 127  -
//   Q5_K    5.5           256, 32              0 .. 31      0 .. 63      0 .. 63
//   Q4_K    4.5           256, 32              0 .. 15      0 .. 63      0 .. 63
//   Q3_K    3.4375        256, 16              -4 .. 3      -32 .. 31    -
//   Q2_K    2.625         256, 16              0 .. 3       0 .. 15      0 .. 15
//
// Each block type has the same accessors, and constants that bound its integers (minima have the
// bounds of scales). Setters write into bits that are still zero. Plain data: copy a block in and
// out of a row with memcpy.

#include <cstdint>
#include <cstring>

#include "base/dtype.h"

namespace caravan {

/// The integers of one sub-block.
struct SubScale {
  int scale = 1;
  int min = 0;
};

/// A binary16 in two bytes.
struct Half {
  uint8_t bytes[2];

  float Get() const {
    uint16_t bits;
    std::memcpy(&bits, bytes, sizeof(bits));
    return Float16ToFloat(bits);
  }
  void SetBits(uint16_t bits) { std::memcpy(bytes, &bits, sizeof(bits)); }
};

inline int BitsAt(uint8_t byte, int shift, int width) { return byte >> shift & ((1 << width) - 1); }
inline void OrBits(uint8_t& byte, int shift, int bits) {
  byte = static_cast<uint8_t>(byte | bits << shift);
}

/// The 8 scales and 8 minima of Q4_K and Q5_K, 6 bits each. Of sub-block s < 4, scale and min are
/// the lower 6 bits of bytes s and 4 + s. Of s >= 4, their lower 4 bits are the lower and the upper
/// half of byte 4 + s, and their upper 2 bits the upper 2 of bytes s - 4 and s.
struct SixBitScales {
  uint8_t bytes[12];

  SubScale Get(int s) const {
    if (s < 4) return {BitsAt(bytes[s], 0, 6), BitsAt(bytes[4 + s], 0, 6)};
    return {BitsAt(bytes[4 + s], 0, 4) | BitsAt(bytes[s - 4], 6, 2) << 4,
            BitsAt(bytes[4 + s], 4, 4) | BitsAt(bytes[s], 6, 2) << 4};
  }
  void Set(int s, SubScale sub) {
    if (s < 4) {
      OrBits(bytes[s], 0, sub.scale);
      OrBits(bytes[4 + s], 0, sub.min);
      return;
    }
    OrBits(bytes[4 + s], 0, (sub.scale & 15) | (sub.min & 15) << 4);
    OrBits(bytes[s - 4], 6, sub.scale >> 4);
    OrBits(bytes[s], 6, sub.min >> 4);
  }
};

struct Q8_0Block {
  static constexpr DType kDType = DType::kQ8_0;
  static constexpr int kValues = 32, kSubValues = 32;
  static constexpr int kMinCode = -128, kMaxCode = 127;
  static constexpr int kMinScale = 1, kMaxScale = 1;
  static constexpr bool kHasMin = false;

  Half d;
  int8_t codes[32];

  float D() const { return d.Get(); }
  float Dmin() const { return 0; }
  SubScale Sub(int) const { return {}; }
  void SetSub(int, SubScale) {}
  int Code(int i) const { return codes[i]; }
  void SetCode(int i, int code) { codes[i] = static_cast<int8_t>(code); }
};

/// Code + 8 of i < 16 is the lower half of byte i, that of i >= 16 the upper half of byte i - 16.
struct Q4_0Block {
  static constexpr DType kDType = DType::kQ4_0;
  static constexpr int kValues = 32, kSubValues = 32;
  static constexpr int kMinCode = -8, kMaxCode = 7;
  static constexpr int kMinScale = 1, kMaxScale = 1;
  static constexpr bool kHasMin = false;

  Half d;
  uint8_t codes[16];

  float D() const { return d.Get(); }
  float Dmin() const { return 0; }
  SubScale Sub(int) const { return {}; }
  void SetSub(int, SubScale) {}
  int Code(int i) const { return BitsAt(codes[i % 16], i / 16 * 4, 4) - 8; }
  void SetCode(int i, int code) { OrBits(codes[i % 16], i / 16 * 4, code + 8); }
};

/// Each 128 values take 64 bytes of the codes' lower 4 bits (values 0 .. 63 the lower halves, 64 ..
/// 127 the upper) and 32 bytes of their upper 2 (values 32 k .. 32 k + 31 the bits 2 k, 2 k + 1). A
/// code is stored + 32.
struct Q6_KBlock {
  static constexpr DType kDType = DType::kQ6_K;
  static constexpr int kValues = 256, kSubValues = 16;
  static constexpr int kMinCode = -32, kMaxCode = 31;
  static constexpr int kMinScale = -128, kMaxScale = 127;
  static constexpr bool kHasMin = false;

  uint8_t low[128];
  uint8_t high[64];
  int8_t scales[16];
  Half d;

  float D() const { return d.Get(); }
  float Dmin() const { return 0; }
  SubScale Sub(int s) const { return {scales[s], 0}; }
  void SetSub(int s, SubScale sub) { scales[s] = static_cast<int8_t>(sub.scale); }
  int Code(int i) const {
    return (BitsAt(low[i / 128 * 64 + i % 64], i / 64 % 2 * 4, 4) |
            BitsAt(high[i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2) << 4) -
           32;
  }
  void SetCode(int i, int code) {
    OrBits(low[i / 128 * 64 + i % 64], i / 64 % 2 * 4, (code + 32) & 15);
    OrBits(high[i / 128 * 32 + i % 32], i / 32 % 4 * 2, (code + 32) >> 4);
  }
};

/// Each 64 values take 32 bytes: the lower halves are the first 32 values, the upper the others.
struct Q4_KBlock {
  static constexpr DType kDType = DType::kQ4_K;
  static constexpr int kValues = 256, kSubValues = 32;
  static constexpr int kMinCode = 0, kMaxCode = 15;
  static constexpr int kMinScale = 0, kMaxScale = 63;
  static constexpr bool kHasMin = true;

  Half d, dmin;
  SixBitScales scales;
  uint8_t codes[128];

  float D() const { return d.Get(); }
  float Dmin() const { return dmin.Get(); }
  SubScale Sub(int s) const { return scales.Get(s); }
  void SetSub(int s, SubScale sub) { scales.Set(s, sub); }
  int Code(int i) const { return BitsAt(codes[i / 64 * 32 + i % 32], i / 32 % 2 * 4, 4); }
  void SetCode(int i, int code) { OrBits(codes[i / 64 * 32 + i % 32], i / 32 % 2 * 4, code); }
};

/// The codes' lower 4 bits lie as Q4_K's codes. The fifth of value i is bit i / 32 of high[i % 32].
struct Q5_KBlock {
  static constexpr DType kDType = DType::kQ5_K;
  static constexpr int kValues = 256, kSubValues = 32;
  static constexpr int kMinCode = 0, kMaxCode = 31;
  static constexpr int kMinScale = 0, kMaxScale = 63;
  static constexpr bool kHasMin = true;

  Half d, dmin;
  SixBitScales scales;
  uint8_t high[32];
  uint8_t low[128];

  float D() const { return d.Get(); }
  float Dmin() const { return dmin.Get(); }
  SubScale Sub(int s) const { return scales.Get(s); }
  void SetSub(int s, SubScale sub) { scales.Set(s, sub); }
  int Code(int i) const {
    return BitsAt(low[i / 64 * 32 + i % 32], i / 32 % 2 * 4, 4) | BitsAt(high[i % 32], i / 32, 1)
                                                                      << 4;
  }
  void SetCode(int i, int code) {
    OrBits(low[i / 64 * 32 + i % 32], i / 32 % 2 * 4, code & 15);
    OrBits(high[i % 32], i / 32, code >> 4);
  }
};

/// Each 128 values take 32 bytes of the codes' lower 2 bits: values 32 k .. 32 k + 31 the bits 2 k,
/// 2 k + 1. The third of value i is bit i / 32 of high[i % 32]. A code is stored + 4. A scale,
/// stored
/// + 32, has its lower 4 bits in a half of byte s % 8 (s < 8 the lower) and its upper 2 in the bits
/// 2 (s / 4), 2 (s / 4) + 1 of byte 8 + s % 4.
struct Q3_KBlock {
  static constexpr DType kDType = DType::kQ3_K;
  static constexpr int kValues = 256, kSubValues = 16;
  static constexpr int kMinCode = -4, kMaxCode = 3;
  static constexpr int kMinScale = -32, kMaxScale = 31;
  static constexpr bool kHasMin = false;

  uint8_t high[32];
  uint8_t low[64];
  uint8_t scales[12];
  Half d;

  float D() const { return d.Get(); }
  float Dmin() const { return 0; }
  SubScale Sub(int s) const {
    return {
        (BitsAt(scales[s % 8], s / 8 * 4, 4) | BitsAt(scales[8 + s % 4], s / 4 * 2, 2) << 4) - 32,
        0};
  }
  void SetSub(int s, SubScale sub) {
    OrBits(scales[s % 8], s / 8 * 4, (sub.scale + 32) & 15);
    OrBits(scales[8 + s % 4], s / 4 * 2, (sub.scale + 32) >> 4);
  }
  int Code(int i) const {
    return (BitsAt(low[i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2) | BitsAt(high[i % 32], i / 32, 1)
                                                                        << 2) -
           4;
  }
  void SetCode(int i, int code) {
    OrBits(low[i / 128 * 32 + i % 32], i / 32 % 4 * 2, (code + 4) & 3);
    OrBits(high[i % 32], i / 32, (code + 4) >> 2);
  }
};

/// Codes lie as the lower 2 bits of Q3_K's. Byte s of the scales has the scale in its lower half
/// and the min in its upper.
struct Q2_KBlock {
  static constexpr DType kDType = DType::kQ2_K;
  static constexpr int kValues = 256, kSubValues = 16;
  static constexpr int kMinCode = 0, kMaxCode = 3;
  static constexpr int kMinScale = 0, kMaxScale = 15;
  static constexpr bool kHasMin = true;

  uint8_t scales[16];
  uint8_t codes[64];
  Half d, dmin;

  float D() const { return d.Get(); }
  float Dmin() const { return dmin.Get(); }
  SubScale Sub(int s) const { return {BitsAt(scales[s], 0, 4), BitsAt(scales[s], 4, 4)}; }
  void SetSub(int s, SubScale sub) { OrBits(scales[s], 0, sub.scale | sub.min << 4); }
  int Code(int i) const { return BitsAt(codes[i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2); }
  void SetCode(int i, int code) { OrBits(codes[i / 128 * 32 + i % 32], i / 32 % 4 * 2, code); }
};

static_assert(sizeof(Q8_0Block) == 34 && sizeof(Q4_0Block) == 18 && sizeof(Q6_KBlock) == 210 &&
              sizeof(Q5_KBlock) == 176 && sizeof(Q4_KBlock) == 144 && sizeof(Q3_KBlock) == 110 &&
              sizeof(Q2_KBlock) == 84);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_QUANT_BLOCKS_H_
