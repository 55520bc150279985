// The sums of attention, out of the latent space.

#include <algorithm>

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

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
// Outputs of a block: a warp has 16 of them, and half of the latent columns.
constexpr int kOutputs = kWarps / 2 * 16;
constexpr int kHalf = kMaxLatent / 2;
// Columns that are added up before they go to the total: tensor cores cut what they add up.
constexpr int kPart = 64;
// Spreads rows of latents over the banks.
constexpr int kPitch = kMaxLatent + 16;
// Splits whose weights are in shared memory at a time.
constexpr int kSplits = 32;
/// Shared memory for the latents of so many rows, before what is staged.
constexpr int LatentBytes(int rows) { return rows * kPitch * static_cast<int>(sizeof(float)); }
constexpr int kMostStaticBytes = 5 << 10;

/// The largest of a query's maxima over its splits, and sum over them of 2^(maximum - largest)
/// totals: lane l adds those of splits l, l + 32, ..., then a tree. A warp calls it together.
__device__ float2 MaximumAndTotal(const AttentionBatch& batch, int64_t first_slot, int splits) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t num_heads = batch.shape.num_heads;
  float largest = -INFINITY;
  for (int s = lane; s < splits; s += 32) {
    largest = fmaxf(largest, batch.maxima[first_slot + s * num_heads]);
  }
  largest = WarpMax(largest);
  float total = 0;
  for (int s = lane; s < splits; s += 32) {
    const int64_t slot = first_slot + s * num_heads;
    total = fmaf(exp2f(batch.maxima[slot] - largest), batch.totals[slot], total);
  }
  return {largest, WarpSum(total)};
}

// out[row][head][d] = W_UV[head][d] . x, x = sum over splits of 2^(maxima - largest) / total * sums
// (arXiv:1805.02867, section 3.1), in ascending order. The product is the sum of two halves of the
// columns, each of parts of kPart columns, by MultiplySplit. Grid [num_heads, num_rows / (8
// kTiles), v_head_dim / kOutputs], block 512. Shared memory: 17 KiB for each 8 rows, and the
// outputs' rows of kv_b where stage_bytes (of a row) is not 0. Bytes: all sums once for each
// kOutputs outputs, kv_b's value rows once for each 8 kTiles rows; FLOPs: 2 v_head_dim kv_lora_rank
// a row and head.
template <DType kDType, int kTiles>
__global__ void __launch_bounds__(kThreads)
    ValueProjectionKernel(AttentionBatch batch, Matrix kv_b, int64_t stage_bytes, float* out) {
  extern __shared__ uint4 shared[];
  auto* const latents = reinterpret_cast<float(*)[kPitch]>(shared);
  auto* const stage = reinterpret_cast<std::byte*>(shared) + LatentBytes(8 * kTiles);
  constexpr int kRows = 8 * kTiles;
  __shared__ float2 maxima_totals[kRows];
  __shared__ float split_weights[kRows][kSplits];
  const int tid = static_cast<int>(threadIdx.x);
  const int warp = tid / 32, lane = tid % 32;
  const int group = lane / 4, quad = lane % 4;
  const int64_t head = blockIdx.x;
  const int64_t num_heads = batch.shape.num_heads;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kRows;
  const int num_rows =
      static_cast<int>(min(static_cast<int64_t>(kRows), batch.num_rows - first_row));
  const int v_head_dim = static_cast<int>(batch.shape.v_head_dim);
  const int latent = static_cast<int>(batch.shape.kv_lora_rank);
  const int64_t first_value =
      head * (batch.shape.qk_nope_head_dim + v_head_dim) + batch.shape.qk_nope_head_dim;

  const int first_out = static_cast<int>(blockIdx.z) * kOutputs;
  LetNextBegin();
  const Matrix values = StageRows<kThreads>(kv_b, stage_bytes, first_value + first_out,
                                            min(kOutputs, v_head_dim - first_out),
                                            stage_bytes != 0 ? stage : nullptr);
  WaitForEarlier();

  const auto first_slot_of = [&](int r) {
    return (first_row + r) * batch.max_splits * num_heads + head;
  };
  const auto splits_of = [&](int r) {
    return static_cast<int>(AttentionSplits(batch.places[first_row + r].position));
  };
  for (int r = warp; r < num_rows; r += kWarps) {
    const float2 found = MaximumAndTotal(batch, first_slot_of(r), splits_of(r));
    if (lane == 0) maxima_totals[r] = found;
  }
  __syncthreads();
  // A thread has four columns of every kThreads / kThreadsARow-th row.
  constexpr int kThreadsARow = kMaxLatent / 4;
  constexpr int kThreadRows = kRows * kThreadsARow / kThreads;
  const int column = tid % kThreadsARow * 4;
  float4 combined[kThreadRows] = {};
  for (int64_t first = 0; first < batch.max_splits; first += kSplits) {
    if (first > 0) __syncthreads();  // the weights before have been read
    for (int i = tid; i < kRows * kSplits; i += kThreads) {
      const int r = i / kSplits, s = static_cast<int>(first) + i % kSplits;
      if (r < num_rows && s < splits_of(r)) {
        split_weights[r][i % kSplits] =
            exp2f(batch.maxima[first_slot_of(r) + s * num_heads] - maxima_totals[r].x) /
            maxima_totals[r].y;
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      const int r = tid / kThreadsARow + i * (kThreads / kThreadsARow);
      if (r >= num_rows || column >= latent) continue;
      const int splits = min(kSplits, splits_of(r) - static_cast<int>(first));
      const float* from = batch.sums + (first_slot_of(r) + first * num_heads) * latent + column;
      float4 x = combined[i];
#pragma unroll 4
      for (int s = 0; s < splits; ++s) {
        const float weight = split_weights[r][s];
        const float4 sum = latent % 4 == 0 ? *reinterpret_cast<const float4*>(from)
                                           : make_float4(from[0], column + 1 < latent ? from[1] : 0,
                                                         column + 2 < latent ? from[2] : 0,
                                                         column + 3 < latent ? from[3] : 0);
        x.x = fmaf(weight, sum.x, x.x);
        x.y = fmaf(weight, sum.y, x.y);
        x.z = fmaf(weight, sum.z, x.z);
        x.w = fmaf(weight, sum.w, x.w);
        from += num_heads * latent;
      }
      combined[i] = x;
    }
  }
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int r = tid / kThreadsARow + i * (kThreads / kThreadsARow);
    *reinterpret_cast<float4*>(&latents[r][column]) = combined[i];
  }
  WaitForCopies<0>();
  __syncthreads();

  // totals[n]: of outputs d (elements 0 and 1) and d + 8, rows 8 n + 2 quad and the next.
  const int d = first_out + warp / 2 * 16 + group;
  const int begin = warp % 2 * kHalf + 4 * quad;
  const RowOfFours<kDType> upper_row(values, first_value + d);
  const RowOfFours<kDType> lower_row(values, first_value + d + 8);
  float totals[kTiles][4] = {};
  for (int part = begin; part < begin + kHalf; part += kPart) {
    float sums[kTiles][4] = {}, rests[kTiles][4] = {};
#pragma unroll 1
    for (int c = part; c < part + kPart; c += 16) {
      const float4 upper = d < v_head_dim && c < latent ? upper_row.At(c) : float4{};
      const float4 lower = d + 8 < v_head_dim && c < latent ? lower_row.At(c) : float4{};
      const SplitFloat a[2][4] = {{Split(upper.x), Split(lower.x), Split(upper.y), Split(lower.y)},
                                  {Split(upper.z), Split(lower.z), Split(upper.w), Split(lower.w)}};
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float4 x = *reinterpret_cast<const float4*>(&latents[8 * n + group][c]);
        const SplitFloat b[2][2] = {{Split(x.x), Split(x.y)}, {Split(x.z), Split(x.w)}};
        MultiplySplit(sums[n], rests[n], a[0], b[0]);
        MultiplySplit(sums[n], rests[n], a[1], b[1]);
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) totals[n][i] += sums[n][i] + rests[n][i];
    }
  }

  // The second half's totals go to the warps of the first, which are their neighbours.
  __syncthreads();
  float* const halves = &latents[0][0];
  float* const own = halves + (warp / 2 * 32 + lane) * (4 * kTiles);
  static_assert(kWarps / 2 * 32 * 4 * kTiles <= kRows * kPitch);
  if (warp % 2 == 1) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      *reinterpret_cast<float4*>(own + 4 * n) = {totals[n][0], totals[n][1], totals[n][2],
                                                 totals[n][3]};
    }
  }
  __syncthreads();
  if (warp % 2 == 1) return;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const float4 second = *reinterpret_cast<const float4*>(own + 4 * n);
    const float results[4] = {totals[n][0] + second.x, totals[n][1] + second.y,
                              totals[n][2] + second.z, totals[n][3] + second.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = 8 * n + 2 * quad + i % 2;
      const int output = d + i / 2 * 8;
      if (r >= num_rows || output >= v_head_dim) continue;
      const int64_t row = batch.places[first_row + r].row;
      out[(row * num_heads + head) * v_head_dim + output] = results[i];
    }
  }
}

}  // namespace

absl::Status LaunchValueProjection(const CudaStream& stream, const AttentionBatch& batch,
                                   const Matrix& kv_b, float* out) {
  CARAVAN_CHECK(batch.shape.kv_lora_rank <= kMaxLatent);
  const int64_t most_shared = stream.device().max_shared_bytes() - kMostStaticBytes;
  const int rows = batch.num_rows <= 8 || LatentBytes(32) > most_shared ? 8 : 32;
  const dim3 grid(batch.shape.num_heads, CeilDiv(batch.num_rows, int64_t{rows}),
                  CeilDiv(batch.shape.v_head_dim, int64_t{kOutputs}));
  const int64_t staged = StagedBytes(kv_b, std::min(batch.shape.v_head_dim, int64_t{kOutputs}),
                                     most_shared - LatentBytes(rows));
  const int64_t shared = LatentBytes(rows) + staged;
  const int64_t stage_bytes = staged != 0 ? DTypeBytes(kv_b.dtype, kv_b.cols) : 0;
  return WithDType(kv_b.dtype, [&]<DType kDType>() -> absl::Status {
    const auto kernel =
        rows == 8 ? ValueProjectionKernel<kDType, 1> : ValueProjectionKernel<kDType, 4>;
    CARAVAN_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    return LaunchOverlapped(stream, "ValueProjectionKernel", kernel, grid, kThreads, shared, batch,
                            kv_b, stage_bytes, out);
  });
}

}  // namespace caravan
