// The queries of attention in the latent space.

#include <cuda_fp16.h>

#include <cmath>

#include "base/check.h"
#include "base/int_math.h"
#include "kernels/cuda/attention_launches.h"
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/matrix_values.cuh"
#include "kernels/cuda/mla_attention.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/overlapped_launch.cuh"
#include "kernels/cuda/staged_rows.cuh"

namespace caravan {
namespace {

// A warp has 32 latent columns.
constexpr int kThreads = kMaxLatent;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxNope = 256;
constexpr int kMostStaticBytes = 44 << 10;

// queries[row][head] = [sum over i of q_nope[i] W_UK[head][i]; q_rope]: for tensor cores times the
// power of two that brings the largest value to [1, 2), in binary16. Sums ascend in i, by
// MultiplySplit. Grid [num_heads, num_rows / (8 kTiles)], block 512: a warp has 32 columns of 8
// kTiles rows. Shared memory 9 (kTiles = 1) or 43 KiB, and the head's rows of kv_b where
// stage_bytes (of a row) is not 0. Bytes: kv_b's key rows once for each 8 kTiles rows; FLOPs: 2
// nope kv_lora_rank a row and head.
template <DType kDType, int kTiles>
__global__ void __launch_bounds__(kThreads)
    LatentQueriesKernel(AttentionBatch batch, Matrix kv_b, int64_t stage_bytes, float scale,
                        const float* q) {
  extern __shared__ uint4 stage[];
  constexpr int kRows = 8 * kTiles;
  constexpr int kPitch = kRows + (kTiles > 1 ? 8 : 0);  // spreads four lines over the banks
  __shared__ float nope_values[kMaxNope][kPitch];
  __shared__ float partial[kWarps + 1][kRows];  // the largest of each warp's columns, and of rope
  __shared__ int exponents[kRows];
  const int tid = static_cast<int>(threadIdx.x);
  const int warp = tid / 32, lane = tid % 32;
  const int group = lane / 4, quad = lane % 4;
  const int64_t head = blockIdx.x;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kRows;
  const int num_rows =
      static_cast<int>(min(static_cast<int64_t>(kRows), batch.num_rows - first_row));
  const int nope = static_cast<int>(batch.shape.qk_nope_head_dim);
  const int rope = static_cast<int>(batch.shape.qk_rope_head_dim);
  const int latent = static_cast<int>(batch.shape.kv_lora_rank);
  const int width = latent + rope;
  const int steps = (nope + 7) / 8;
  const int column = warp * 32 + group * 4;  // of this lane's four
  const int64_t first_key = head * (nope + batch.shape.v_head_dim);

  LetNextBegin();
  const Matrix keys =
      StageRows<kThreads>(kv_b, stage_bytes, first_key, nope,
                          stage_bytes != 0 ? reinterpret_cast<std::byte*>(stage) : nullptr);
  WaitForEarlier();
  const auto query = [&](int r) {
    return q + (batch.places[first_row + r].row * batch.shape.num_heads + head) * (nope + rope);
  };
  for (int r = warp; r < kRows; r += kWarps) {
    const float* const from = r < num_rows ? query(r) : nullptr;
    for (int i = lane; i < steps * 8; i += 32) {
      nope_values[i][r] = from != nullptr && i < nope ? from[i] : 0;
    }
    float largest = 0;
    for (int i = lane; from != nullptr && i < rope; i += 32) {
      largest = fmaxf(largest, fabsf(from[nope + i]));
    }
    largest = WarpMax(largest);
    if (lane == 0) partial[kWarps][r] = largest;
  }
  WaitForCopies<0>();
  __syncthreads();

  // sums[m][n]: of columns column + 2 m and the next (elements 0, 1 and 2, 3), rows 8 n + 2 quad
  // and the next.
  float sums[2][kTiles][4] = {}, rests[2][kTiles][4] = {};
#pragma unroll 1
  for (int first = quad; first < steps * 8; first += 8) {
    float4 values[2];  // of rows `first` and first + 4
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first + 4 * i;
      values[i] = row < nope && column < latent
                      ? RowOfFours<kDType>(keys, first_key + row).At(column)
                      : float4{};
    }
    const SplitFloat a[2][4] = {
        {Split(values[0].x), Split(values[0].y), Split(values[1].x), Split(values[1].y)},
        {Split(values[0].z), Split(values[0].w), Split(values[1].z), Split(values[1].w)}};
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const SplitFloat b[2] = {Split(nope_values[first][8 * n + group]),
                               Split(nope_values[first + 4][8 * n + group])};
#pragma unroll
      for (int m = 0; m < 2; ++m) MultiplySplit(sums[m][n], rests[m][n], a[m], b);
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[0][n][i] += rests[0][n][i];
      sums[1][n][i] += rests[1][n][i];
    }
  }

  // What a row is multiplied with, as a power of two.
  if (batch.tensor_cores) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float largest = fmaxf(fmaxf(fabsf(sums[0][n][i]), fabsf(sums[0][n][2 + i])),
                              fmaxf(fabsf(sums[1][n][i]), fabsf(sums[1][n][2 + i])));
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
        }
        if (group == 0) partial[warp][8 * n + 2 * quad + i] = largest;
      }
    }
    __syncthreads();
    if (tid < kRows) {
      float largest = 0;
      for (int w = 0; w <= kWarps; ++w) largest = fmaxf(largest, partial[w][tid]);
      exponents[tid] = largest > 0 ? min(max(ilogbf(largest), -126), 127) : 0;
    }
    __syncthreads();
  }
  const auto at = [&](int r) { return (first_row + r) * batch.shape.num_heads + head; };
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = 8 * n + 2 * quad + i;
      if (r >= num_rows || column >= latent) continue;
      const float values[4] = {sums[0][n][i], sums[0][n][2 + i], sums[1][n][i], sums[1][n][2 + i]};
      if (batch.tensor_cores) {
        const float to_one = ldexpf(1, -exponents[r]);
        __half2 halves[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          halves[j] = __floats2half2_rn(values[2 * j] * to_one, values[2 * j + 1] * to_one);
        }
        __half* const out = static_cast<__half*>(batch.queries) + at(r) * width;
        *reinterpret_cast<uint2*>(out + column) = *reinterpret_cast<const uint2*>(halves);
      } else {
        float* const out = static_cast<float*>(batch.queries) + at(r) * width;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (column + j < latent) out[column + j] = values[j];
        }
      }
    }
  }
  for (int r = warp; r < num_rows; r += kWarps) {
    const float* const from = query(r) + nope;
    const float to_one = batch.tensor_cores ? ldexpf(1, -exponents[r]) : 1;
    for (int i = lane; i < rope; i += 32) {
      const int64_t place = at(r) * width + latent + i;
      if (batch.tensor_cores) {
        static_cast<__half*>(batch.queries)[place] = __float2half_rn(from[i] * to_one);
      } else {
        static_cast<float*>(batch.queries)[place] = from[i];
      }
    }
    if (lane == 0) {
      batch.score_scales[at(r)] = batch.tensor_cores ? ldexpf(scale, exponents[r]) : scale;
    }
  }
}

}  // namespace

absl::Status LaunchLatentQueries(const CudaStream& stream, const AttentionBatch& batch,
                                 const Matrix& kv_b, const float* q) {
  CARAVAN_CHECK(batch.shape.qk_nope_head_dim <= kMaxNope);
  CARAVAN_CHECK(batch.shape.kv_lora_rank <= kMaxLatent);
  // Scores are in base 2, so that exp2f gives the weights.
  const float scale =
      static_cast<float>(static_cast<double>(batch.shape.softmax_scale) / std::log(2.0));
  const int rows = batch.num_rows <= 8 ? 8 : 32;
  const dim3 grid(batch.shape.num_heads, CeilDiv(batch.num_rows, int64_t{rows}));
  const int64_t staged = StagedBytes(kv_b, batch.shape.qk_nope_head_dim,
                                     stream.device().max_shared_bytes() - kMostStaticBytes);
  const int64_t stage_bytes = staged != 0 ? DTypeBytes(kv_b.dtype, kv_b.cols) : 0;
  return WithDType(kv_b.dtype, [&]<DType kDType>() -> absl::Status {
    const auto kernel = rows == 8 ? LatentQueriesKernel<kDType, 1> : LatentQueriesKernel<kDType, 4>;
    CARAVAN_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(staged)));
    return LaunchOverlapped(stream, "LatentQueriesKernel", kernel, grid, kThreads, staged, batch,
                            kv_b, stage_bytes, scale, q);
  });
}

}  // namespace caravan
