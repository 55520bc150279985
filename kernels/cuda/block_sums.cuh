#ifndef CARAVAN_KERNELS_CUDA_BLOCK_SUMS_CUH_
#define CARAVAN_KERNELS_CUDA_BLOCK_SUMS_CUH_

// Sums over a warp and over a block of kRowThreads, in one order that depends on the number of
// terms alone.

#include <cstdint>

namespace caravan {

/// Threads of a block that reduces a row.
inline constexpr int kRowThreads = 1024;

/// The same sum in every lane: a tree of five levels.
__device__ inline float WarpSum(float value) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

__device__ inline float WarpMax(float value) {
  for (int lane = 16; lane > 0; lane /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lane));
  }
  return value;
}

/// The sum of every thread's value, the same in all of them: trees over each warp and over the
/// warps. partial: 32 floats of shared memory. All kRowThreads threads of the block call it.
__device__ inline float BlockSum(float value, float* partial) {
  value = WarpSum(value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x % 32);
  return WarpSum(lane < kRowThreads / 32 ? partial[lane] : 0.0f);
}

/// What RMSNorm multiplies a row of n values with: 1 / sqrt(mean(x^2) + eps). sum: of the squares.
__device__ inline float InverseRmsOf(float sum, int64_t n, float eps) {
  return 1 / sqrtf(sum / static_cast<float>(n) + eps);
}

/// The same of x [n]: thread t adds the squares of x[t], x[t + 1024], ..., then BlockSum.
__device__ inline float InverseRms(const float* x, int64_t n, float eps, float* partial) {
  float sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < n; i += kRowThreads) sum = fmaf(x[i], x[i], sum);
  return InverseRmsOf(BlockSum(sum, partial), n, eps);
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_BLOCK_SUMS_CUH_
