#ifndef CARAVAN_KERNELS_CUDA_MMA_CUH_
#define CARAVAN_KERNELS_CUDA_MMA_CUH_

// Instructions for tensor cores, of cards from 8.0 on (PTX ISA, "Warp level matrix instructions").
// Elsewhere they do not compile into anything, but for MultiplySplit, which all cards have.

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/async_copy.cuh"

namespace caravan {

/// Four (two) matrices of 8 x 8 binary16; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void LoadMatrices(uint32_t address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ inline void LoadMatrices(uint32_t address, uint32_t (&r)[2]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address));
}
/// Each transposed.
__device__ inline void LoadTransposed(uint32_t address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

/// c += a b: a [16, 16], b [16, 8], of binary16; c [16, 8] f32. Lane l has c's rows l / 4 and l / 4
/// + 8, columns 2 (l % 4) and the next.
__device__ inline void MultiplyHalves(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                      uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/// An f32 as the sum of two tf32 values, to 2^-22 of it; where there are no tensor cores for these,
/// as it is.
struct SplitFloat {
  uint32_t high;
  uint32_t low;
};
__device__ inline SplitFloat Split(float value) {
  SplitFloat split = {__float_as_uint(value), 0};
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(split.high) : "f"(value));
  const float rest = value - __uint_as_float(split.high);
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(split.low) : "f"(rest));
#endif
  return split;
}

#if __CUDA_ARCH__ >= 800
__device__ inline void MultiplyTf32(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

/// c += a b with f32's precision, its smaller terms in `rest`: a [16, 8], b [8, 8], c as
/// MultiplyHalves has it. Lane l has of a rows l / 4 and l / 4 + 8, column l % 4, then both rows of
/// column l % 4 + 4; of b rows l % 4 and l % 4 + 4, column l / 4. All lanes of the warp call it.
__device__ inline void MultiplySplit(float (&c)[4], float (&rest)[4], const SplitFloat (&a)[4],
                                     const SplitFloat (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  MultiplyTf32(c, a[0].high, a[1].high, a[2].high, a[3].high, b[0].high, b[1].high);
  MultiplyTf32(rest, a[0].low, a[1].low, a[2].low, a[3].low, b[0].high, b[1].high);
  MultiplyTf32(rest, a[0].high, a[1].high, a[2].high, a[3].high, b[0].low, b[1].low);
#else
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto of = [](const SplitFloat& value, int from) {
    return __shfl_sync(0xffffffffu, __uint_as_float(value.high), from);
  };
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float upper = of(a[k / 4 * 2], lane / 4 * 4 + k % 4);
    const float lower = of(a[k / 4 * 2 + 1], lane / 4 * 4 + k % 4);
    const float left = of(b[k / 4], lane % 4 * 8 + k % 4);
    const float right = of(b[k / 4], lane % 4 * 8 + 4 + k % 4);
    c[0] = fmaf(upper, left, c[0]);
    c[1] = fmaf(upper, right, c[1]);
    c[2] = fmaf(lower, left, c[2]);
    c[3] = fmaf(lower, right, c[3]);
  }
#endif
}

/// Begins a copy of 16 bytes, both addresses aligned.
__device__ inline void CopyAsync16(uint32_t shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global));
#endif
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_MMA_CUH_
