// The two products with kv_b around the attention: queries into the latent space, and its sums out
// of it.

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

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// Rows that share each value of kv_b.
constexpr int kRows = 16;
// Latent columns of a thread.
constexpr int kColumns = kMaxLatent / kThreads;
constexpr int kMaxNope = 256;
// Sums of the value projection: outputs of a block, and latent columns that are added up before
// they go to the total.
constexpr int kOutputs = 128;
constexpr int kPart = 32;

/// The largest of each row's values, in all threads. own: this thread's.
__device__ void RowMaxima(const float (&own)[kRows], float (*partial)[kRows], float (&max)[kRows]) {
  for (int r = 0; r < kRows; ++r) {
    const float value = WarpMax(own[r]);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32][r] = value;
  }
  __syncthreads();
  for (int r = 0; r < kRows; ++r) {
    max[r] = 0;
    for (int w = 0; w < kWarps; ++w) max[r] = fmaxf(max[r], partial[w][r]);
  }
}

// queries[row][head] = [sum over i of q_nope[i] W_UK[head][i]; q_rope]: for tensor cores times the
// power of two that brings the largest value to [1, 2), in binary16. Sums ascend in i. Grid
// [num_heads, num_rows / kRows], block 256: a thread has two columns of kRows rows. Shared memory
// 17 KiB. Bytes: kv_b's key rows once for each kRows rows; FLOPs: 2 nope kv_lora_rank a row and
// head.
template <bool kTensorCores>
__global__ void LatentQueriesKernel(AttentionBatch batch, Matrix kv_b, float scale,
                                    const float* q) {
  __shared__ float nope_values[kRows][kMaxNope];
  __shared__ float partial[kWarps][kRows];
  const int tid = static_cast<int>(threadIdx.x);
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
  for (int i = tid; i < kRows * nope; i += kThreads) {
    nope_values[i / nope][i % nope] = i / nope < num_rows ? query(i / nope)[i % nope] : 0;
  }
  __syncthreads();

  float sums[kColumns][kRows] = {};
  const int64_t first_key = head * (nope + batch.shape.v_head_dim);
  for (int i = 0; i < nope; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      const int c = tid + j * kThreads;
      if (c >= latent) continue;
      const float weight = MatrixValue(kv_b, first_key + i, c);
      for (int r = 0; r < kRows; ++r) sums[j][r] = fmaf(nope_values[r][i], weight, sums[j][r]);
    }
  }

  if constexpr (kTensorCores) {
    float largest[kRows];
    for (int r = 0; r < kRows; ++r) {
      largest[r] = 0;
      for (int j = 0; j < kColumns; ++j) largest[r] = fmaxf(largest[r], fabsf(sums[j][r]));
      if (r >= num_rows) continue;
      for (int i = tid; i < rope; i += kThreads) {
        largest[r] = fmaxf(largest[r], fabsf(query(r)[nope + i]));
      }
    }
    float row_max[kRows];
    RowMaxima(largest, partial, row_max);
    for (int r = 0; r < num_rows; ++r) {
      const int exponent = row_max[r] > 0 ? min(max(ilogbf(row_max[r]), -126), 127) : 0;
      const float to_one = ldexpf(1, -exponent);
      const int64_t at = (first_row + r) * batch.shape.num_heads + head;
      __half* const out = static_cast<__half*>(batch.queries) + at * width;
      for (int j = 0; j < kColumns; ++j) {
        const int c = tid + j * kThreads;
        if (c < latent) out[c] = __float2half_rn(sums[j][r] * to_one);
      }
      for (int i = tid; i < rope; i += kThreads) {
        out[latent + i] = __float2half_rn(query(r)[nope + i] * to_one);
      }
      if (tid == 0) batch.score_scales[at] = ldexpf(scale, exponent);
    }
  } else {
    for (int r = 0; r < num_rows; ++r) {
      const int64_t at = (first_row + r) * batch.shape.num_heads + head;
      float* const out = static_cast<float*>(batch.queries) + at * width;
      for (int j = 0; j < kColumns; ++j) {
        const int c = tid + j * kThreads;
        if (c < latent) out[c] = sums[j][r];
      }
      for (int i = tid; i < rope; i += kThreads) out[latent + i] = query(r)[nope + i];
      if (tid == 0) batch.score_scales[at] = scale;
    }
  }
}

// maxima[split] = 2^(maxima[split] - largest) / sum over splits of 2^(maxima - largest) totals:
// what the split's sum counts for (arXiv:1805.02867, section 3.1). A thread has a row and head,
// splits ascend. Bytes: 20 a slot.
__global__ void SplitWeightsKernel(AttentionBatch batch) {
  const int64_t query = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t num_heads = batch.shape.num_heads;
  if (query >= batch.num_rows * num_heads) return;
  const int64_t row = query / num_heads;
  const int splits = batch.places[row].position / kAttentionSplit + 1;
  const int64_t first = row * batch.max_splits * num_heads + query % num_heads;
  float max = batch.maxima[first];
  for (int s = 1; s < splits; ++s) max = fmaxf(max, batch.maxima[first + s * num_heads]);
  float total = 0;
  for (int s = 0; s < splits; ++s) {
    const int64_t slot = first + s * num_heads;
    total = fmaf(exp2f(batch.maxima[slot] - max), batch.totals[slot], total);
  }
  for (int s = 0; s < splits; ++s) {
    const int64_t slot = first + s * num_heads;
    batch.maxima[slot] = exp2f(batch.maxima[slot] - max) / total;
  }
}

// out[row][head][d] = W_UV[head][d] . sum over splits of weight * sum of latents. A product is the
// sum, in ascending order, of parts of kPart columns, each added up in ascending order. Grid
// [num_heads, num_rows / kRows, v_head_dim / kOutputs], block 256: a thread has one output of 8
// rows. Shared memory 19 KiB. Bytes: all sums once for each kOutputs outputs, kv_b's value rows
// once for each kRows rows; FLOPs: 2 v_head_dim kv_lora_rank a row and head.
__global__ void ValueProjectionKernel(AttentionBatch batch, Matrix kv_b, float* out) {
  __shared__ float weights[kOutputs][kPart + 1];
  __shared__ __align__(16) float latents[kRows][kPart];
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t head = blockIdx.x;
  const int64_t num_heads = batch.shape.num_heads;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kRows;
  const int num_rows =
      static_cast<int>(min(static_cast<int64_t>(kRows), batch.num_rows - first_row));
  const int first_out = static_cast<int>(blockIdx.z) * kOutputs;
  const int num_outs = min(kOutputs, static_cast<int>(batch.shape.v_head_dim) - first_out);
  const int latent = static_cast<int>(batch.shape.kv_lora_rank);
  const int64_t first_value = head * (batch.shape.qk_nope_head_dim + batch.shape.v_head_dim) +
                              batch.shape.qk_nope_head_dim + first_out;
  constexpr int kThreadRows = kRows * kOutputs / kThreads;
  const int d = tid % kOutputs;
  const int thread_row = tid / kOutputs * kThreadRows;

  float totals[kThreadRows] = {};
  for (int begin = 0; begin < latent; begin += kPart) {
    const int columns = min(kPart, latent - begin);
    for (int i = tid; i < kOutputs * kPart; i += kThreads) {
      const int o = i / kPart, c = i % kPart;
      weights[o][c] =
          o < num_outs && c < columns ? MatrixValue(kv_b, first_value + o, begin + c) : 0.0f;
    }
    for (int i = tid; i < kRows * kPart; i += kThreads) {
      const int r = i / kPart, c = i % kPart;
      float value = 0;
      if (r < num_rows && c < columns) {
        const int splits = batch.places[first_row + r].position / kAttentionSplit + 1;
        int64_t slot = (first_row + r) * batch.max_splits * num_heads + head;
        for (int s = 0; s < splits; ++s, slot += num_heads) {
          value = fmaf(batch.maxima[slot], batch.sums[slot * latent + begin + c], value);
        }
      }
      latents[r][c] = value;
    }
    __syncthreads();
    float part[kThreadRows] = {};
    for (int c = 0; c < kPart; c += 4) {
      const float w[4] = {weights[d][c], weights[d][c + 1], weights[d][c + 2], weights[d][c + 3]};
      for (int r = 0; r < kThreadRows; ++r) {
        const float4 x = *reinterpret_cast<const float4*>(&latents[thread_row + r][c]);
        part[r] = fmaf(w[0], x.x, part[r]);
        part[r] = fmaf(w[1], x.y, part[r]);
        part[r] = fmaf(w[2], x.z, part[r]);
        part[r] = fmaf(w[3], x.w, part[r]);
      }
    }
    for (int r = 0; r < kThreadRows; ++r) totals[r] += part[r];
    __syncthreads();
  }
  if (d >= num_outs) return;
  for (int r = 0; r < kThreadRows && thread_row + r < num_rows; ++r) {
    const int64_t row = batch.places[first_row + thread_row + r].row;
    out[(row * num_heads + head) * batch.shape.v_head_dim + first_out + d] = totals[r];
  }
}

}  // namespace

absl::Status LaunchLatentQueries(const CudaStream& stream, const AttentionBatch& batch,
                                 const Matrix& kv_b, const float* q) {
  CARAVAN_CHECK(batch.shape.qk_nope_head_dim <= kMaxNope);
  // Scores are in base 2, so that exp2f gives the weights.
  const float scale =
      static_cast<float>(static_cast<double>(batch.shape.softmax_scale) / std::log(2.0));
  const dim3 grid(batch.shape.num_heads, CeilDiv(batch.num_rows, int64_t{kRows}));
  const auto kernel = batch.tensor_cores ? LatentQueriesKernel<true> : LatentQueriesKernel<false>;
  kernel<<<grid, kThreads, 0, stream.get()>>>(batch, kv_b, scale, q);
  return LaunchStatus("LatentQueriesKernel");
}

absl::Status LaunchSplitWeights(const CudaStream& stream, const AttentionBatch& batch) {
  const int64_t queries = batch.num_rows * batch.shape.num_heads;
  SplitWeightsKernel<<<CeilDiv(queries, int64_t{kThreads}), kThreads, 0, stream.get()>>>(batch);
  return LaunchStatus("SplitWeightsKernel");
}

absl::Status LaunchValueProjection(const CudaStream& stream, const AttentionBatch& batch,
                                   const Matrix& kv_b, float* out) {
  const dim3 grid(batch.shape.num_heads, CeilDiv(batch.num_rows, int64_t{kRows}),
                  CeilDiv(batch.shape.v_head_dim, int64_t{kOutputs}));
  ValueProjectionKernel<<<grid, kThreads, 0, stream.get()>>>(batch, kv_b, out);
  return LaunchStatus("ValueProjectionKernel");
}

}  // namespace caravan
