#ifndef CARAVAN_KERNELS_CUDA_ACTIVATIONS_CUH_
#define CARAVAN_KERNELS_CUDA_ACTIVATIONS_CUH_

// Activation blocks from a warp's registers.

#include <cstdint>

#include "kernels/cuda/activations.h"

namespace caravan {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

/// Quantizes one block, a value a lane, and stores it as block `block` of row `row`. All lanes of
/// the warp call it together. The arithmetic is that of kernels/cpu/tile_kernels.h, Quantize.
__device__ inline void StoreActivationBlock(float value, int lane, const ActivationRows& rows,
                                            int64_t padded_columns, int64_t row, int64_t block) {
  uint32_t max_bits = __float_as_uint(value) & 0x7fffffffu;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    max_bits = max(max_bits, __shfl_xor_sync(kWholeWarp, max_bits, step));
  }
  constexpr uint32_t kInfinity = 0x7f800000u;
  const float largest = __uint_as_float(max_bits);
  float scale = __fdiv_rn(largest, 127.0f);
  // A subnormal quotient may be far below the true one, by its own measure: the next one is above.
  if (scale < 0x1p-126f && largest > 0) scale = __fadd_rn(scale, 0x1p-149f);
  int code = 0;
  if (max_bits >= kInfinity) {
    scale = __uint_as_float(0x7fc00000u);
  } else if (max_bits != 0) {
    code = __float2int_rn(__fdiv_rn(value, scale));
  }
  int sum = code;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, step);
  rows.codes[row * padded_columns + block / 2 * 64 +
             ActivationByte(static_cast<int>(block % 2) * 32 + lane)] = static_cast<int8_t>(code);
  if (lane == 0) {
    rows.scales[row * (padded_columns / 32) + block] = {scale,
                                                        __fmul_rn(scale, static_cast<float>(sum))};
  }
}

/// silu(gate) * up (SwiGLU, arXiv:2002.05202, section 2).
__device__ inline float SwiGlu(float gate, float up) {
  return __fmul_rn(__fdiv_rn(gate, __fadd_rn(1.0f, expf(-gate))), up);
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_ACTIVATIONS_CUH_
