#ifndef CARAVAN_KERNELS_CUDA_BLOCK_FORMATS_CUH_
#define CARAVAN_KERNELS_CUDA_BLOCK_FORMATS_CUH_

// How a warp takes the block formats from a tile (kernels/tiled/tile_layout.cc gives the fields'
// order, kernels/quant/blocks.h the formats). Each format says:
//
// - kGroupBlocks, kGroupBytes: blocks of 32 values that are copied to shared memory together, and
//   their bytes for all 16 rows: `group`, where they lie there.
// - kUsesShared, Prepare: what the lanes decode for each other, into `shared` [8][8]: for block p
//   and lane group g, at SharedPlace(p, g).
// - Add: acc[n][2 r + i] += the products of block p with activation rows 8 n + 2 quad + i, in
//   canonical form. b: the lane's codes; dx, sx: the activations' scales and scaled sums.

#include <cstdint>

#include "kernels/cuda/warp_product.cuh"

namespace caravan {

/// Of eight lanes that write or read together, each has a bank of its own.
__device__ inline int SharedPlace(int p, int group) { return p * 8 + (group ^ (p / 2 * 2)); }

/// Bytes of 0 .. 127 become signed ones, `kOffset` less.
template <int kOffset>
__device__ inline uint32_t Less(uint32_t bytes) {
  constexpr uint32_t kAdded = (128u - kOffset) * 0x01010101u;
  return (bytes + kAdded) ^ 0x80808080u;
}

__device__ inline uint32_t BitsOf(uint32_t word, int shift, uint32_t mask) {
  return (word >> shift) & (mask * 0x01010101u);
}
__device__ inline uint32_t ByteOf(uint32_t word, int i) { return (word >> (8 * i)) & 0xffu; }

/// acc += (integer) * (weight scale * activation scale)
template <int N, bool kOne>
__device__ inline void AddScaled(const uint32_t (&a)[4], const float (&scales)[2],
                                 const uint2 (&b)[N], const float (&dx)[N][2], float (&acc)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    int c[4];
    Multiply32<kFloatBits, kOne>(c, a, b[n].x, b[n].y);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < (kOne ? 1 : 2); ++i) {
        float& sum = acc[n][2 * r + i];
        sum = __fmaf_rn(SumOf(c[2 * r + i]), __fmul_rn(scales[r], dx[n][i]), sum);
      }
    }
  }
}

struct CudaQ8_0 {
  static constexpr int kGroupBlocks = 4, kBlockBytes = 16 * 34;
  static constexpr int kGroupBytes = kGroupBlocks * kBlockBytes;
  static constexpr bool kUsesShared = false;

  __device__ static void Prepare(const uint8_t*, const Lane&, uint4*) {}

  template <int N, bool kOne>
  __device__ static void Add(const uint8_t* group, const uint4*, const Lane& lane, int p,
                             const uint2 (&b)[N], const float (&dx)[N][2], const float (&)[N][2],
                             float (&acc)[N][4]) {
    const uint8_t* block = group + p * kBlockBytes;
    const float2 d = HalvesToFloats(LoadU32(block + 4 * lane.group));
    const uint2 first = LoadCodes(block + 32 + lane.code_offset);
    const uint2 second = LoadCodes(block + 32 + 256 + lane.code_offset);
    AddScaled<N, kOne>({first.x, first.y, second.x, second.y}, {d.x, d.y}, b, dx, acc);
  }
};

struct CudaQ4_0 {
  static constexpr int kGroupBlocks = 8, kBlockBytes = 16 * 18;
  static constexpr int kGroupBytes = kGroupBlocks * kBlockBytes;
  static constexpr bool kUsesShared = false;

  __device__ static void Prepare(const uint8_t*, const Lane&, uint4*) {}

  template <int N, bool kOne>
  __device__ static void Add(const uint8_t* group, const uint4*, const Lane& lane, int p,
                             const uint2 (&b)[N], const float (&dx)[N][2], const float (&)[N][2],
                             float (&acc)[N][4]) {
    const uint8_t* block = group + p * kBlockBytes;
    const float2 d = HalvesToFloats(LoadU32(block + 4 * lane.group));
    const uint2 codes = LoadCodes(block + 32 + lane.code_offset);
    AddScaled<N, kOne>({Less<8>(BitsOf(codes.x, 0, 15)), Less<8>(BitsOf(codes.y, 0, 15)),
                        Less<8>(BitsOf(codes.x, 4, 15)), Less<8>(BitsOf(codes.y, 4, 15))},
                       {d.x, d.y}, b, dx, acc);
  }
};

/// The scales and minima of Q4_K and Q5_K: d, dmin, then the 12 bytes of 16 rows each. A quad's
/// lane i decodes sub-blocks 2 i and 2 i + 1 of its group's two rows, as (scale, scale, min, min).
__device__ inline void PrepareSixBits(const uint8_t* block, const Lane& lane, uint4* shared) {
  // Bytes (2 i) % 4 + e of each row, and those 4 and 8 further.
  const uint8_t* first = block + 64 + lane.quad % 2 * 32 + 2 * lane.group;
  uint32_t thirds[3];
#pragma unroll
  for (int third = 0; third < 3; ++third) {
    thirds[third] = LoadU16(first + third * 64) | LoadU16(first + third * 64 + 16) << 16;
  }
  const bool lower = lane.quad < 2;
  const uint32_t scales =
      lower ? BitsOf(thirds[0], 0, 63) : BitsOf(thirds[2], 0, 15) | BitsOf(thirds[0], 2, 0x30);
  const uint32_t mins =
      lower ? BitsOf(thirds[1], 0, 63) : BitsOf(thirds[2], 4, 15) | BitsOf(thirds[1], 2, 0x30);
  const float2 d = HalvesToFloats(LoadU32(block + 4 * lane.group));
  const float2 dmin = HalvesToFloats(LoadU32(block + 32 + 4 * lane.group));
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    *reinterpret_cast<float4*>(shared + SharedPlace(2 * lane.quad + e, lane.group)) =
        make_float4(__fmul_rn(d.x, static_cast<float>(ByteOf(scales, 2 * e))),
                    __fmul_rn(d.y, static_cast<float>(ByteOf(scales, 2 * e + 1))),
                    __fmul_rn(dmin.x, static_cast<float>(ByteOf(mins, 2 * e))),
                    __fmul_rn(dmin.y, static_cast<float>(ByteOf(mins, 2 * e + 1))));
  }
}

/// acc += integer * (scale * dx), then acc -= min * (dx * sum of the activations' codes)
template <int N, bool kOne>
__device__ inline void AddWithMins(const uint32_t (&a)[4], const float4& scales,
                                   const uint2 (&b)[N], const float (&dx)[N][2],
                                   const float (&sx)[N][2], float (&acc)[N][4]) {
  AddScaled<N, kOne>(a, {scales.x, scales.y}, b, dx, acc);
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int i = 0; i < (kOne ? 1 : 2); ++i) {
      acc[n][i] = __fmaf_rn(-scales.z, sx[n][i], acc[n][i]);
      acc[n][2 + i] = __fmaf_rn(-scales.w, sx[n][i], acc[n][2 + i]);
    }
  }
}

struct CudaQ4_K {
  static constexpr int kGroupBlocks = 8, kGroupBytes = 16 * 144;
  static constexpr bool kUsesShared = true;

  __device__ static void Prepare(const uint8_t* group, const Lane& lane, uint4* shared) {
    PrepareSixBits(group, lane, shared);
  }

  template <int N, bool kOne>
  __device__ static void Add(const uint8_t* group, const uint4* shared, const Lane& lane, int p,
                             const uint2 (&b)[N], const float (&dx)[N][2], const float (&sx)[N][2],
                             float (&acc)[N][4]) {
    const uint8_t* codes = group + 256 + p / 2 * 512 + lane.code_offset;
    const uint2 first = LoadCodes(codes), second = LoadCodes(codes + 256);
    const int shift = p % 2 * 4;
    AddWithMins<N, kOne>({BitsOf(first.x, shift, 15), BitsOf(first.y, shift, 15),
                          BitsOf(second.x, shift, 15), BitsOf(second.y, shift, 15)},
                         *reinterpret_cast<const float4*>(shared + SharedPlace(p, lane.group)), b,
                         dx, sx, acc);
  }
};

struct CudaQ5_K {
  static constexpr int kGroupBlocks = 8, kGroupBytes = 16 * 176;
  static constexpr bool kUsesShared = true;

  __device__ static void Prepare(const uint8_t* group, const Lane& lane, uint4* shared) {
    PrepareSixBits(group, lane, shared);
  }

  template <int N, bool kOne>
  __device__ static void Add(const uint8_t* group, const uint4* shared, const Lane& lane, int p,
                             const uint2 (&b)[N], const float (&dx)[N][2], const float (&sx)[N][2],
                             float (&acc)[N][4]) {
    const uint8_t* low = group + 768 + p / 2 * 512 + lane.code_offset;
    const uint8_t* high = group + 256 + lane.code_offset;
    const uint2 first = LoadCodes(low), second = LoadCodes(low + 256);
    const uint2 first_high = LoadCodes(high), second_high = LoadCodes(high + 256);
    const auto code = [p](uint32_t low_bits, uint32_t high_bit) {
      return BitsOf(low_bits, p % 2 * 4, 15) | BitsOf(high_bit, p, 1) << 4;
    };
    AddWithMins<N, kOne>({code(first.x, first_high.x), code(first.y, first_high.y),
                          code(second.x, second_high.x), code(second.y, second_high.y)},
                         *reinterpret_cast<const float4*>(shared + SharedPlace(p, lane.group)), b,
                         dx, sx, acc);
  }
};

/// acc += (scale of the first 16 * their integer + scale of the second * theirs) * (d * dx), the
/// integers exact. scales: of the first half's two rows, then of the second's.
template <int N, bool kOne>
__device__ inline void AddHalves(const uint32_t (&a)[4], const int4& scales, const float2& d,
                                 const uint2 (&b)[N], const float (&dx)[N][2], float (&acc)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    int first[4], second[4];
    Multiply16<kOne>(first, a[0], a[1], b[n].x);
    Multiply16<kOne>(second, a[2], a[3], b[n].y);
#pragma unroll
    for (int i = 0; i < (kOne ? 1 : 2); ++i) {
      const int upper = scales.x * first[i] + scales.z * second[i];
      const int lower = scales.y * first[2 + i] + scales.w * second[2 + i];
      acc[n][i] = __fmaf_rn(__int2float_rn(upper), __fmul_rn(d.x, dx[n][i]), acc[n][i]);
      acc[n][2 + i] = __fmaf_rn(__int2float_rn(lower), __fmul_rn(d.y, dx[n][i]), acc[n][2 + i]);
    }
  }
}

struct CudaQ6_K {
  static constexpr int kGroupBlocks = 8, kGroupBytes = 16 * 210;
  static constexpr bool kUsesShared = true;

  __device__ static void Prepare(const uint8_t* group, const Lane& lane, uint4* shared) {
    const uint8_t* scales = group + 32 + 64 * lane.quad + 2 * lane.group;
    const auto byte = [scales](int s, int row) {
      return static_cast<int>(static_cast<int8_t>(scales[s * 16 + row]));
    };
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      *reinterpret_cast<int4*>(shared + SharedPlace(2 * lane.quad + e, lane.group)) =
          make_int4(byte(2 * e, 0), byte(2 * e, 1), byte(2 * e + 1, 0), byte(2 * e + 1, 1));
    }
  }

  template <int N, bool kOne>
  __device__ static void Add(const uint8_t* group, const uint4* shared, const Lane& lane, int p,
                             const uint2 (&b)[N], const float (&dx)[N][2], const float (&)[N][2],
                             float (&acc)[N][4]) {
    const int quarter = p % 4;
    const uint8_t* low_at = group + 1312 + p / 4 * 1024 + quarter % 2 * 512 + lane.code_offset;
    const uint8_t* high_at = group + 288 + p / 4 * 512 + lane.code_offset;
    const uint2 low[2] = {LoadCodes(low_at), LoadCodes(low_at + 256)};
    const uint2 high[2] = {LoadCodes(high_at), LoadCodes(high_at + 256)};
    const auto code = [quarter](uint32_t low_bits, uint32_t high_bits) {
      return Less<32>(BitsOf(low_bits, quarter / 2 * 4, 15) | BitsOf(high_bits, 2 * quarter, 3)
                                                                  << 4);
    };
    AddHalves<N, kOne>({code(low[0].x, high[0].x), code(low[0].y, high[0].y),
                        code(low[1].x, high[1].x), code(low[1].y, high[1].y)},
                       *reinterpret_cast<const int4*>(shared + SharedPlace(p, lane.group)),
                       HalvesToFloats(LoadU32(group + 4 * lane.group)), b, dx, acc);
  }
};

struct CudaQ3_K {
  static constexpr int kGroupBlocks = 8, kGroupBytes = 16 * 110;
  static constexpr bool kUsesShared = true;

  __device__ static void Prepare(const uint8_t* group, const Lane& lane, uint4* shared) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      // Of sub-blocks 4 quad + 2 e and the next: the bytes with their lower and their upper bits.
      const uint8_t* at = group + 32 + 32 * e + 2 * lane.group;
      const uint32_t low = LoadU16(at + lane.quad % 2 * 64) | LoadU16(at + lane.quad % 2 * 64 + 16)
                                                                  << 16;
      const uint32_t high = LoadU16(at + 128) | LoadU16(at + 128 + 16) << 16;
      const uint32_t both = BitsOf(low, lane.quad / 2 * 4, 15) | BitsOf(high, lane.quad * 2, 3)
                                                                     << 4;
      const auto scale = [both](int i) { return static_cast<int>(ByteOf(both, i)) - 32; };
      *reinterpret_cast<int4*>(shared + SharedPlace(2 * lane.quad + e, lane.group)) =
          make_int4(scale(0), scale(1), scale(2), scale(3));
    }
  }

  template <int N, bool kOne>
  __device__ static void Add(const uint8_t* group, const uint4* shared, const Lane& lane, int p,
                             const uint2 (&b)[N], const float (&dx)[N][2], const float (&)[N][2],
                             float (&acc)[N][4]) {
    const uint8_t* low_at = group + 736 + p / 4 * 512 + lane.code_offset;
    const uint8_t* third_at = group + 224 + lane.code_offset;
    const uint2 low[2] = {LoadCodes(low_at), LoadCodes(low_at + 256)};
    const uint2 third[2] = {LoadCodes(third_at), LoadCodes(third_at + 256)};
    const auto code = [p](uint32_t low_bits, uint32_t third_bits) {
      return Less<4>(BitsOf(low_bits, p % 4 * 2, 3) | BitsOf(third_bits, p, 1) << 2);
    };
    AddHalves<N, kOne>({code(low[0].x, third[0].x), code(low[0].y, third[0].y),
                        code(low[1].x, third[1].x), code(low[1].y, third[1].y)},
                       *reinterpret_cast<const int4*>(shared + SharedPlace(p, lane.group)),
                       HalvesToFloats(LoadU32(group + 4 * lane.group)), b, dx, acc);
  }
};

/// Codes times scales are at most 45, so that bytes hold them; minima, 16 times each, make a
/// product of their own: acc += dx * (d * integer - dmin * integer of the minima).
struct CudaQ2_K {
  static constexpr int kGroupBlocks = 8, kGroupBytes = 16 * 84;
  static constexpr bool kUsesShared = false;

  __device__ static void Prepare(const uint8_t*, const Lane&, uint4*) {}

  template <int N, bool kOne>
  __device__ static void Add(const uint8_t* group, const uint4*, const Lane& lane, int p,
                             const uint2 (&b)[N], const float (&dx)[N][2], const float (&)[N][2],
                             float (&acc)[N][4]) {
    // Both sub-blocks' bytes of both rows.
    const uint8_t* at = group + 64 + 32 * p + 2 * lane.group;
    const uint32_t both = LoadU16(at) | LoadU16(at + 16) << 16;
    const uint32_t scales = BitsOf(both, 0, 15), mins = BitsOf(both, 4, 15);
    const uint8_t* codes = group + 320 + p / 4 * 512 + lane.code_offset;
    const uint2 first = LoadCodes(codes), second = LoadCodes(codes + 256);
    const int shift = p % 4 * 2;
    const uint32_t a[4] = {BitsOf(first.x, shift, 3) * ByteOf(scales, 0),
                           BitsOf(first.y, shift, 3) * ByteOf(scales, 1),
                           BitsOf(second.x, shift, 3) * ByteOf(scales, 2),
                           BitsOf(second.y, shift, 3) * ByteOf(scales, 3)};
    const uint32_t m[4] = {__byte_perm(mins, 0, 0x0000), __byte_perm(mins, 0, 0x1111),
                           __byte_perm(mins, 0, 0x2222), __byte_perm(mins, 0, 0x3333)};
    const float2 d = HalvesToFloats(LoadU32(group + 4 * lane.group));
    const float2 dmin = HalvesToFloats(LoadU32(group + 32 + 4 * lane.group));
#pragma unroll
    for (int n = 0; n < N; ++n) {
      int c[4], cm[4];
      Multiply32<kFloatBits, kOne>(c, a, b[n].x, b[n].y);
      Multiply32<kFloatBits, kOne>(cm, m, b[n].x, b[n].y);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int i = 0; i < (kOne ? 1 : 2); ++i) {
          const int at = 2 * r + i;
          const float product = __fmaf_rn(-(r == 0 ? dmin.x : dmin.y), SumOf(cm[at]),
                                          __fmul_rn(r == 0 ? d.x : d.y, SumOf(c[at])));
          acc[n][at] = __fmaf_rn(dx[n][i], product, acc[n][at]);
        }
      }
    }
  }
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_BLOCK_FORMATS_CUH_
