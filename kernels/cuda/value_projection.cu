// The sums of attention, out of the latent space.

#include "base/check.h"
#include "base/int_math.h"
#include "kernels/cuda/attention_launches.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/matrix_values.cuh"
#include "kernels/cuda/mla_attention.h"

namespace caravan {
namespace {

constexpr int kThreads = 512;
// Rows and outputs of a block: a thread has one output of kThreadRows rows.
constexpr int kRows = 16;
constexpr int kOutputs = 128;
constexpr int kThreadRows = kRows * kOutputs / kThreads;
// Columns in shared memory at a time, and those that are added up before they go to the total.
constexpr int kColumns = 64;
constexpr int kPart = 32;
constexpr int kThreadWeights = kOutputs * kColumns / kThreads;
constexpr int kThreadLatents = kRows * kColumns / kThreads;

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
// [num_heads, num_rows / kRows, v_head_dim / kOutputs], block 512. Shared memory 37 KiB. Bytes: all
// sums once for each kOutputs outputs, kv_b's value rows once for each kRows rows; FLOPs: 2
// v_head_dim kv_lora_rank a row and head.
template <DType kDType>
__global__ void __launch_bounds__(kThreads)
    ValueProjectionKernel(AttentionBatch batch, Matrix kv_b, float* out) {
  __shared__ float weights[kOutputs][kColumns + 1];
  __shared__ __align__(16) float latents[kRows][kColumns];
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

  // This thread's part of the columns from `begin` on: some of one output's weights, and some of
  // one row's latents.
  const int weight_line = tid / (kColumns / kThreadWeights);
  const int weight_column = tid % (kColumns / kThreadWeights) * kThreadWeights;
  const int latent_line = tid / (kColumns / kThreadLatents);
  const int latent_column = tid % (kColumns / kThreadLatents);
  const int64_t first_slot = (first_row + latent_line) * batch.max_splits * num_heads + head;
  const int splits = latent_line < num_rows
                         ? batch.places[first_row + latent_line].position / kAttentionSplit + 1
                         : 0;
  const auto read = [&](int begin, float(&w)[kThreadWeights], float(&x)[kThreadLatents]) {
#pragma unroll
    for (int i = 0; i < kThreadWeights; ++i) {
      const int c = begin + weight_column + i;
      w[i] = weight_line < num_outs && c < latent
                 ? MatrixValueOf<kDType>(kv_b, first_value + weight_line, c)
                 : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kThreadLatents; ++i) x[i] = 0;
#pragma unroll 4
    for (int s = 0; s < splits; ++s) {
      const int64_t slot = first_slot + s * num_heads;
      const float weight = batch.maxima[slot];
#pragma unroll
      for (int i = 0; i < kThreadLatents; ++i) {
        const int c = begin + latent_column + i * (kColumns / kThreadLatents);
        if (c < latent) x[i] = fmaf(weight, batch.sums[slot * latent + c], x[i]);
      }
    }
  };

  const int d = tid % kOutputs;
  const int thread_row = tid / kOutputs * kThreadRows;
  float totals[kThreadRows] = {};
  float next_weights[kThreadWeights];
  float next_latents[kThreadLatents];
  read(0, next_weights, next_latents);
  for (int begin = 0; begin < latent; begin += kColumns) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kThreadWeights; ++i) {
      weights[weight_line][weight_column + i] = next_weights[i];
    }
#pragma unroll
    for (int i = 0; i < kThreadLatents; ++i) {
      latents[latent_line][latent_column + i * (kColumns / kThreadLatents)] = next_latents[i];
    }
    __syncthreads();
    if (begin + kColumns < latent) read(begin + kColumns, next_weights, next_latents);
    for (int first = 0; first < kColumns; first += kPart) {
      float part[kThreadRows] = {};
#pragma unroll 4
      for (int c = first; c < first + kPart; c += 4) {
        const float w[4] = {weights[d][c], weights[d][c + 1], weights[d][c + 2], weights[d][c + 3]};
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) {
          const float4 x = *reinterpret_cast<const float4*>(&latents[thread_row + r][c]);
          part[r] = fmaf(w[0], x.x, part[r]);
          part[r] = fmaf(w[1], x.y, part[r]);
          part[r] = fmaf(w[2], x.z, part[r]);
          part[r] = fmaf(w[3], x.w, part[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) totals[r] += part[r];
    }
  }
  if (d >= num_outs) return;
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    if (thread_row + r >= num_rows) continue;
    const int64_t row = batch.places[first_row + thread_row + r].row;
    out[(row * num_heads + head) * batch.shape.v_head_dim + first_out + d] = totals[r];
  }
}

}  // namespace

absl::Status LaunchSplitWeights(const CudaStream& stream, const AttentionBatch& batch) {
  const int64_t queries = batch.num_rows * batch.shape.num_heads;
  SplitWeightsKernel<<<CeilDiv(queries, int64_t{kThreads}), kThreads, 0, stream.get()>>>(batch);
  return LaunchStatus("SplitWeightsKernel");
}

absl::Status LaunchValueProjection(const CudaStream& stream, const AttentionBatch& batch,
                                   const Matrix& kv_b, float* out) {
  const dim3 grid(batch.shape.num_heads, CeilDiv(batch.num_rows, int64_t{kRows}),
                  CeilDiv(batch.shape.v_head_dim, int64_t{kOutputs}));
  WithDType(kv_b.dtype, [&]<DType kDType>() {
    ValueProjectionKernel<kDType><<<grid, kThreads, 0, stream.get()>>>(batch, kv_b, out);
  });
  return LaunchStatus("ValueProjectionKernel");
}

}  // namespace caravan
