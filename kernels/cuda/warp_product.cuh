#ifndef CARAVAN_KERNELS_CUDA_WARP_PRODUCT_CUH_
#define CARAVAN_KERNELS_CUDA_WARP_PRODUCT_CUH_

// A warp's integer products of 16 weight rows with 8 activation rows, in the shape of the tensor
// cores' instruction, and the same from dot products of four bytes for cards without it.
//
// Lane 4 g + i ("group" g < 8, "quad" i < 4) holds of the weights rows 2 g and 2 g + 1, columns
// 4 i .. + 3 and 16 + 4 i .. + 3; of the activations those columns of row g; of the results rows
// 2 g and 2 g + 1 for the activation rows 2 i and 2 i + 1. So eight bytes of each of four lines of
// a tile are a lane's, and a warp reads 256 bytes in a run.

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/activations.cuh"

namespace caravan {

struct Lane {
  int lane;
  int group;
  int quad;
  int code_offset;  // of its eight bytes in four lines of codes
};

__device__ inline Lane ThisLane() {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return {lane, lane / 4, lane % 4, lane % 4 * 64 + lane / 4 * 8};
}

__device__ inline uint2 LoadCodes(const uint8_t* at) { return *reinterpret_cast<const uint2*>(at); }
__device__ inline uint32_t LoadU16(const uint8_t* at) {
  return *reinterpret_cast<const unsigned short*>(at);
}
__device__ inline uint32_t LoadU32(const uint8_t* at) {
  return *reinterpret_cast<const uint32_t*>(at);
}
/// Two binary16s.
__device__ inline float2 HalvesToFloats(uint32_t bits) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}

#if __CUDA_ARCH__ >= 800

/// c[2 r + n] = kFrom + sum over 32 columns of weights of row r and activations of row n. kOne: all
/// activation rows are the same.
template <int kFrom, bool kOne>
__device__ inline void Multiply32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%10, %10, %10, %10};"
      : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(kFrom));
}

/// The sums over the 16 columns of one half, from 0.
template <bool kOne>
__device__ inline void Multiply16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%7, %7, %7, %7};"
      : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
      : "r"(a0), "r"(a1), "r"(b), "r"(0));
}

#else

/// A lane's dot products with all eight activation rows, added over the quad so that each lane is
/// left with the two that are its own.
template <bool kOne, int kHalves>
__device__ inline void DotProducts(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane % 4;
  if constexpr (kOne) {
    int rows[2];
    for (int r = 0; r < 2; ++r) {
      rows[r] = __dp4a(static_cast<int>(a[r]), static_cast<int>(b0), 0);
      if (kHalves == 2) {
        rows[r] = __dp4a(static_cast<int>(a[2 + r]), static_cast<int>(b1), rows[r]);
      }
      rows[r] += __shfl_xor_sync(kWholeWarp, rows[r], 2);
      rows[r] += __shfl_xor_sync(kWholeWarp, rows[r], 1);
      c[2 * r] += rows[r];
    }
  } else {
    int sums[8][2];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int x0 = static_cast<int>(__shfl_sync(kWholeWarp, b0, n * 4 + quad));
      const int x1 = kHalves == 2 ? static_cast<int>(__shfl_sync(kWholeWarp, b1, n * 4 + quad)) : 0;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        sums[n][r] = __dp4a(static_cast<int>(a[r]), x0, 0);
        if (kHalves == 2) sums[n][r] = __dp4a(static_cast<int>(a[2 + r]), x1, sums[n][r]);
      }
    }
    const bool upper = (quad & 2) != 0;
    const bool odd = (quad & 1) != 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int fours[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int sent = upper ? sums[n][r] : sums[n + 4][r];
        const int kept = upper ? sums[n + 4][r] : sums[n][r];
        fours[n] = kept + __shfl_xor_sync(kWholeWarp, sent, 2);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int sent = odd ? fours[n] : fours[n + 2];
        const int kept = odd ? fours[n + 2] : fours[n];
        c[2 * r + n] += kept + __shfl_xor_sync(kWholeWarp, sent, 1);
      }
    }
  }
}

template <int kFrom, bool kOne>
__device__ inline void Multiply32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  for (int& sum : c) sum = kFrom;
  DotProducts<kOne, 2>(c, a, b0, b1);
}

template <bool kOne>
__device__ inline void Multiply16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  for (int& sum : c) sum = 0;
  DotProducts<kOne, 1>(c, {a0, a1, 0, 0}, b, 0);
}

#endif

// Integers below 2^22 in magnitude become floats by one addition: an accumulator that starts at
// kFloatBits holds, read as a float, 1.5 * 2^23 more than its sum.
inline constexpr int kFloatBits = 0x4b400000;
__device__ inline float SumOf(int accumulator) {
  return __fadd_rn(__int_as_float(accumulator), -12582912.0f);
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_WARP_PRODUCT_CUH_
