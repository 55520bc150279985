// The queries of attention in the latent space.

#include <cuda_fp16.h>

#include <cmath>

#include "base/check.h"
#include "base/int_math.h"
#include "kernels/cuda/attention_launches.h"
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/matrix_values.cuh"
#include "kernels/cuda/mla_attention.h"

namespace caravan {
namespace {

// A thread has one latent column.
constexpr int kThreads = kMaxLatent;
constexpr int kWarps = kThreads / 32;
// Rows that share each value of kv_b, and values that a thread reads ahead.
constexpr int kRows = 16;
constexpr int kAhead = 8;
constexpr int kMaxNope = 256;

/// The largest of each row's values, in all threads. own: this thread's.
__device__ void RowMaxima(const float (&own)[kRows], float (*partial)[kRows], float (&max)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float value = WarpMax(own[r]);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32][r] = value;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    max[r] = 0;
    for (int w = 0; w < kWarps; ++w) max[r] = fmaxf(max[r], partial[w][r]);
  }
}

// queries[row][head] = [sum over i of q_nope[i] W_UK[head][i]; q_rope]: for tensor cores times the
// power of two that brings the largest value to [1, 2), in binary16. Sums ascend in i. Grid
// [num_heads, num_rows / kRows], block 512: a thread has one column of kRows rows. Shared memory 17
// KiB. Bytes: kv_b's key rows once for each kRows rows; FLOPs: 2 nope kv_lora_rank a row and head.
template <DType kDType>
__global__ void __launch_bounds__(kThreads)
    LatentQueriesKernel(AttentionBatch batch, Matrix kv_b, float scale, const float* q) {
  __shared__ __align__(16) float nope_values[kMaxNope][kRows];
  __shared__ float partial[kWarps][kRows];
  const int c = static_cast<int>(threadIdx.x);
  const int64_t head = blockIdx.x;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kRows;
  const int num_rows =
      static_cast<int>(min(static_cast<int64_t>(kRows), batch.num_rows - first_row));
  const int nope = static_cast<int>(batch.shape.qk_nope_head_dim);
  const int rope = static_cast<int>(batch.shape.qk_rope_head_dim);
  const int latent = static_cast<int>(batch.shape.kv_lora_rank);
  const int width = latent + rope;
  const auto query = [&](int r) {
    return q + (batch.places[first_row + r].row * batch.shape.num_heads + head) * (nope + rope);
  };
  const int steps = (nope + kAhead - 1) / kAhead;
  for (int r = 0; r < kRows; ++r) {
    for (int i = c; i < steps * kAhead; i += kThreads) {
      nope_values[i][r] = r < num_rows && i < nope ? query(r)[i] : 0;
    }
  }
  __syncthreads();

  float sums[kRows] = {};
  const int64_t first_key = head * (nope + batch.shape.v_head_dim);
  const auto read = [&](int step, float(&values)[kAhead]) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int row = step * kAhead + i;
      values[i] = row < nope && c < latent ? MatrixValueOf<kDType>(kv_b, first_key + row, c) : 0.0f;
    }
  };
  float next[kAhead];
  read(0, next);
  for (int step = 0; step < steps; ++step) {
    float values[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) values[i] = next[i];
    if (step + 1 < steps) read(step + 1, next);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int r = 0; r < kRows; r += 4) {
        const float4 x = *reinterpret_cast<const float4*>(&nope_values[step * kAhead + i][r]);
        sums[r] = fmaf(x.x, values[i], sums[r]);
        sums[r + 1] = fmaf(x.y, values[i], sums[r + 1]);
        sums[r + 2] = fmaf(x.z, values[i], sums[r + 2]);
        sums[r + 3] = fmaf(x.w, values[i], sums[r + 3]);
      }
    }
  }

  // What the row is multiplied with, as a power of two; a thread has at most one rope value.
  float largest[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    largest[r] = fabsf(sums[r]);
    if (r < num_rows && c < rope) largest[r] = fmaxf(largest[r], fabsf(query(r)[nope + c]));
  }
  float row_max[kRows];
  if (batch.tensor_cores) RowMaxima(largest, partial, row_max);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= num_rows) continue;
    const int64_t at = (first_row + r) * batch.shape.num_heads + head;
    if (batch.tensor_cores) {
      const int exponent = row_max[r] > 0 ? min(max(ilogbf(row_max[r]), -126), 127) : 0;
      const float to_one = ldexpf(1, -exponent);
      __half* const out = static_cast<__half*>(batch.queries) + at * width;
      if (c < latent) out[c] = __float2half_rn(sums[r] * to_one);
      if (c < rope) out[latent + c] = __float2half_rn(query(r)[nope + c] * to_one);
      if (c == 0) batch.score_scales[at] = ldexpf(scale, exponent);
    } else {
      float* const out = static_cast<float*>(batch.queries) + at * width;
      if (c < latent) out[c] = sums[r];
      if (c < rope) out[latent + c] = query(r)[nope + c];
      if (c == 0) batch.score_scales[at] = scale;
    }
  }
}

}  // namespace

absl::Status LaunchLatentQueries(const CudaStream& stream, const AttentionBatch& batch,
                                 const Matrix& kv_b, const float* q) {
  CARAVAN_CHECK(batch.shape.qk_nope_head_dim <= kMaxNope);
  CARAVAN_CHECK(batch.shape.kv_lora_rank <= kThreads && batch.shape.qk_rope_head_dim <= kThreads);
  // Scores are in base 2, so that exp2f gives the weights.
  const float scale =
      static_cast<float>(static_cast<double>(batch.shape.softmax_scale) / std::log(2.0));
  const dim3 grid(batch.shape.num_heads, CeilDiv(batch.num_rows, int64_t{kRows}));
  WithDType(kv_b.dtype, [&]<DType kDType>() {
    LatentQueriesKernel<kDType><<<grid, kThreads, 0, stream.get()>>>(batch, kv_b, scale, q);
  });
  return LaunchStatus("LatentQueriesKernel");
}

}  // namespace caravan
