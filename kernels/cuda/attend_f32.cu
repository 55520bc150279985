// Attention over the compressed cache in f32, for any shape, format of the cache and card.

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>

#include "base/check.h"
#include "base/int_math.h"
#include "kernels/cuda/attention_launches.h"
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/kv_address.cuh"
#include "kernels/cuda/mla_attention.h"

namespace caravan {
namespace {

constexpr int kThreads = 256;
// A warp has a head; positions of a tile, whose softmax is online.
constexpr int kHeads = kThreads / 32;
constexpr int kPositions = 16;
constexpr int kColumns = kMaxLatent / kThreads;
// The widest cached row, and what a lane has of it.
constexpr int kMaxWidth = kMaxLatent + 128;
constexpr int kLaneValues = kMaxWidth / 32;

/// Value `c` of a cached row.
template <DType kDType>
__device__ float CachedValue(const std::byte* row, int c) {
  if constexpr (kDType == DType::kF32) return reinterpret_cast<const float*>(row)[c];
  if constexpr (kDType == DType::kF16) return __half2float(reinterpret_cast<const __half*>(row)[c]);
  if constexpr (kDType == DType::kQ8_0) {
    const std::byte* const block = row + c / 32 * 34;
    const float d = __half2float(*reinterpret_cast<const __half*>(block));
    return d * static_cast<float>(static_cast<int8_t>(block[2 + c % 32]));
  }
}

// Of a row, kHeads of its heads and a split of its positions: maximum of the scores s = q' . k *
// scale, total of w = 2^(s - maximum), and sum of w * latent; online over tiles of kPositions
// (arXiv:1805.02867, algorithm 3). Grid [rows * heads / kHeads, splits], block 256: first a warp
// has a head's scores, then a thread has two columns of all heads' sums. Shared memory: kHeads
// queries and kPositions cached rows as floats, 54 KiB for R1. Bytes: the split's cache rows, once
// for each kHeads heads; FLOPs: 2 (kv_width + kv_lora_rank) a head and position.
template <DType kDType>
__global__ void AttendF32Kernel(AttentionBatch batch, KvGeometry kv) {
  extern __shared__ float shared[];
  __shared__ __align__(16) float weights[kPositions][kHeads];
  __shared__ float corrections[kHeads];
  const int num_heads = static_cast<int>(batch.shape.num_heads);
  const int latent = static_cast<int>(batch.shape.kv_lora_rank);
  const int width = latent + static_cast<int>(batch.shape.qk_rope_head_dim);
  const int head_tiles = (num_heads + kHeads - 1) / kHeads;
  const int64_t row = blockIdx.x / head_tiles;
  const int first_head = static_cast<int>(blockIdx.x % head_tiles) * kHeads;
  const RowPlace place = batch.places[row];
  const int split = AttentionSplit(place.position);
  const int first_position = static_cast<int>(blockIdx.y) * split;
  if (first_position > place.position) return;
  const int positions = min(split, place.position + 1 - first_position);
  float* const cached = shared;  // [kPositions, width]
  const int tid = static_cast<int>(threadIdx.x);
  const int lane = tid % 32;
  const int warp = tid / 32;
  const int head = first_head + warp;

  const int64_t query = row * num_heads + head;
  const float scale = head < num_heads ? batch.score_scales[query] : 0;
  float own_query[kLaneValues];  // values lane, lane + 32, ...
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    const int c = lane + 32 * i;
    own_query[i] = head < num_heads && c < width
                       ? static_cast<const float*>(batch.queries)[query * width + c]
                       : 0.0f;
  }
  float max = -INFINITY;
  float total = 0;
  float sums[kHeads][kColumns] = {};
  for (int begin = 0; begin < positions; begin += kPositions) {
    const int count = min(kPositions, positions - begin);
    for (int p = warp; p < count; p += kHeads) {
      const std::byte* const from = KvRowAt(batch.blocks, kv, place, first_position + begin + p);
      for (int c = lane; c < width; c += 32) cached[p * width + c] = CachedValue<kDType>(from, c);
    }
    __syncthreads();
    float score = -INFINITY;  // of position `lane`
    for (int p = 0; p < count; ++p) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kLaneValues; ++i) {
        const int c = lane + 32 * i;
        if (c < width) sum = fmaf(own_query[i], cached[p * width + c], sum);
      }
      sum = WarpSum(sum) * scale;
      if (lane == p) score = sum;
    }
    const float new_max = fmaxf(max, WarpMax(score));
    const float weight = lane < count ? exp2f(score - new_max) : 0;
    const float correction = exp2f(max - new_max);
    total = total * correction + WarpSum(weight);
    max = new_max;
    if (lane < kPositions) weights[lane][warp] = weight;
    if (lane == 0) corrections[warp] = correction;
    __syncthreads();
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sums[h][j] *= corrections[h];
    }
    for (int p = 0; p < count; ++p) {
      __align__(16) float weight_of[kHeads];
#pragma unroll
      for (int h = 0; h < kHeads; h += 4) {
        *reinterpret_cast<float4*>(&weight_of[h]) =
            *reinterpret_cast<const float4*>(&weights[p][h]);
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int c = tid + j * kThreads;
        if (c >= latent) continue;
        const float value = cached[p * width + c];
#pragma unroll
        for (int h = 0; h < kHeads; ++h) sums[h][j] = fmaf(weight_of[h], value, sums[h][j]);
      }
    }
    __syncthreads();
  }
  const int64_t first_slot =
      (row * batch.max_splits + static_cast<int64_t>(blockIdx.y)) * num_heads + first_head;
  if (lane == 0 && head < num_heads) {
    batch.maxima[first_slot + warp] = max;
    batch.totals[first_slot + warp] = total;
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int c = tid + j * kThreads;
      if (first_head + h < num_heads && c < latent)
        batch.sums[(first_slot + h) * latent + c] = sums[h][j];
    }
  }
}

}  // namespace

absl::Status LaunchAttendF32(const CudaStream& stream, const AttentionBatch& batch) {
  const DType dtype = batch.kv.dtype;
  const auto kernel = dtype == DType::kF32   ? AttendF32Kernel<DType::kF32>
                      : dtype == DType::kF16 ? AttendF32Kernel<DType::kF16>
                                             : AttendF32Kernel<DType::kQ8_0>;
  const int shared_bytes =
      static_cast<int>(kPositions * batch.shape.kv_width() * static_cast<int64_t>(sizeof(float)));
  CARAVAN_CHECK(batch.shape.kv_width() <= kMaxWidth);
  CARAVAN_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  const dim3 grid(batch.num_rows * CeilDiv(batch.shape.num_heads, int64_t{kHeads}),
                  batch.max_splits);
  const KvGeometry geometry = {batch.kv.block_tokens, DTypeBytes(dtype, batch.shape.kv_width()),
                               batch.block_offset};
  kernel<<<grid, kThreads, shared_bytes, stream.get()>>>(batch, geometry);
  return LaunchStatus("AttendF32Kernel");
}

}  // namespace caravan
