#include "kernels/cuda/expert_routing.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/activations.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/overlapped_launch.cuh"

namespace caravan {
namespace {

constexpr int kThreads = 256;
constexpr int kRouteThreads = 1024;

/// Counting sort of the shares by expert, and the passes that they make.
/// expert_ids [num_shares]. Grid: one block. Shared memory: 8 KiB for the experts' places in the
/// table and 2 KiB for their counts. Bytes: 4 read twice and 8 written a share.
__global__ void __launch_bounds__(kRouteThreads)
    RouteSharesKernel(const __grid_constant__ ExpertTable table, const int32_t* expert_ids,
                      int num_shares, int k, ExpertRouting routing) {
  __shared__ int16_t place_of[kMaxExpertId + 1];
  __shared__ int counts[kMaxTableExperts];
  __shared__ int ends[kMaxTableExperts];  // Where the next share of each goes.
  __shared__ int num_passes[kNumPassClasses];
  const int thread = static_cast<int>(threadIdx.x);
  LetNextBegin();
  WaitForEarlier();
  for (int id = thread; id <= kMaxExpertId; id += kRouteThreads) place_of[id] = -1;
  if (thread < kMaxTableExperts) counts[thread] = 0;
  if (thread < kNumPassClasses) num_passes[thread] = 0;
  __syncthreads();
  if (thread < table.count) place_of[table.ids[thread]] = static_cast<int16_t>(thread);
  __syncthreads();
  const auto place = [&](int share) {
    const int id = expert_ids[share];
    return id < 0 || id > kMaxExpertId ? -1 : place_of[id];
  };
  for (int i = thread; i < num_shares; i += kRouteThreads) {
    const int expert = place(i);
    if (expert >= 0) atomicAdd(&counts[expert], 1);
  }
  __syncthreads();
  if (thread < 32) {  // Each lane sums up eight experts, the warp the lanes.
    constexpr int kEach = kMaxTableExperts / 32;
    int sum = 0;
    for (int i = 0; i < kEach; ++i) sum += counts[thread * kEach + i];
    int end = sum;
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_up_sync(kWholeWarp, end, step);
      if (thread >= step) end += below;
    }
    if (thread == 31) *routing.num_sorted = end;
    int begin = end - sum;
    for (int i = 0; i < kEach; ++i) {
      ends[thread * kEach + i] = begin;
      begin += counts[thread * kEach + i];
    }
  }
  __syncthreads();
  if (thread < table.count) {
    static_assert(kNumPassClasses == 3);
    constexpr int kMost = kPassClassRows[2];
    for (int first = 0; first < counts[thread]; first += kMost) {
      const int count = min(kMost, counts[thread] - first);
      const int pass_class = count <= kPassClassRows[0] ? 0 : count <= kPassClassRows[1] ? 1 : 2;
      ExpertPass pass;
      for (int m = 0; m < 3; ++m) {
        pass.matrices[m] = table.matrices[thread][m];
        pass.scales[m] = table.scales[thread][m];
      }
      pass.first = ends[thread] + first;
      pass.count = count;
      routing.passes[pass_class][atomicAdd(&num_passes[pass_class], 1)] = pass;
    }
  }
  __syncthreads();
  if (thread < kNumPassClasses) routing.num_passes[thread] = num_passes[thread];
  for (int i = thread; i < num_shares; i += kRouteThreads) {
    const int expert = place(i);
    if (expert < 0) continue;
    const int at = atomicAdd(&ends[expert], 1);
    routing.shares[at] = i;
    routing.rows[at] = i / k;
  }
}

/// inner = silu(gate) * up. gates, ups [max_rows, cols]. Grid: a warp for each 32 columns of a row
/// (of the padded columns for blocks). Bytes: 8 read and 1.25 or 4 written a value.
__global__ void __launch_bounds__(kThreads)
    SwiGluKernel(float* gates, const float* ups, int64_t max_rows, int64_t cols,
                 int64_t padded_columns, const int32_t* num_rows, bool as_blocks,
                 ActivationRows blocks) {
  LetNextBegin();
  WaitForEarlier();
  const int64_t item = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row_blocks = padded_columns / 32;
  const int64_t row = item / row_blocks, block = item % row_blocks;
  if (row >= (num_rows == nullptr ? max_rows : *num_rows)) return;
  const int64_t column = block * 32 + lane;
  float value = 0;
  if (column < cols) value = SwiGlu(gates[row * cols + column], ups[row * cols + column]);
  if (as_blocks) {
    StoreActivationBlock(value, lane, blocks, padded_columns, row, block);
  } else if (column < cols) {
    gates[row * cols + column] = value;
  }
}

/// out[t] += sum over j of weights[t, j] * products[t, j], in ascending order of expert.
/// Grid: row x columns. Shared memory: a row's order. Bytes: 4 k + 8 a value of out.
__global__ void __launch_bounds__(kThreads)
    AddProductsKernel(const float* products, const int32_t* expert_ids, const float* weights, int k,
                      int64_t cols, int32_t first_id, int32_t last_id, float* out,
                      int64_t out_stride) {
  __shared__ int order[kMaxChosenExperts];  // -1: another batch's
  __shared__ float ordered_weights[kMaxChosenExperts];
  LetNextBegin();
  WaitForEarlier();
  const int64_t row = blockIdx.x;
  const int32_t* ids = expert_ids + row * k;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < k) {
    const int32_t id = ids[thread];
    int rank = 0;
    for (int j = 0; j < k; ++j) rank += ids[j] < id || (ids[j] == id && j < thread) ? 1 : 0;
    order[rank] = id >= first_id && id <= last_id ? thread : -1;
    ordered_weights[rank] = weights[row * k + thread];
  }
  __syncthreads();
  const int64_t column = int64_t{blockIdx.y} * kThreads + thread;
  if (column >= cols) return;
  float sum = out[row * out_stride + column];
  for (int j = 0; j < k; ++j) {
    if (order[j] < 0) continue;
    sum = __fmaf_rn(ordered_weights[j], products[(row * k + order[j]) * cols + column], sum);
  }
  out[row * out_stride + column] = sum;
}

}  // namespace

absl::Status RouteShares(const CudaStream& stream, const ExpertTable& table,
                         const int32_t* expert_ids, int64_t num_rows, int64_t k,
                         const ExpertRouting& routing) {
  CARAVAN_CHECK(k <= kMaxChosenExperts && table.count <= kMaxTableExperts);
  return LaunchOverlapped(stream, "RouteSharesKernel", RouteSharesKernel, 1, kRouteThreads, 0,
                          table, expert_ids, static_cast<int>(num_rows * k), static_cast<int>(k),
                          routing);
}

absl::Status ApplySwiGlu(const CudaStream& stream, float* gates, const float* ups, int64_t max_rows,
                         int64_t cols, const int32_t* num_rows, const ActivationRows* blocks) {
  const int64_t padded = blocks != nullptr ? PaddedColumns(cols) : RoundUp<int64_t>(cols, 32);
  const int64_t warps = max_rows * padded / 32;
  if (warps == 0) return absl::OkStatus();
  return LaunchOverlapped(stream, "SwiGluKernel", SwiGluKernel,
                          static_cast<unsigned>(CeilDiv<int64_t>(warps, kThreads / 32)), kThreads,
                          0, gates, ups, max_rows, cols, padded, num_rows, blocks != nullptr,
                          blocks != nullptr ? *blocks : ActivationRows());
}

absl::Status AddProducts(const CudaStream& stream, const float* products, const int32_t* expert_ids,
                         const float* weights, int64_t num_rows, int64_t k, int64_t first_col,
                         int64_t cols, int32_t first_id, int32_t last_id, float* out,
                         int64_t out_stride) {
  if (num_rows == 0 || cols == 0) return absl::OkStatus();
  const dim3 grid(static_cast<unsigned>(num_rows),
                  static_cast<unsigned>(CeilDiv<int64_t>(cols, kThreads)));
  return LaunchOverlapped(stream, "AddProductsKernel", AddProductsKernel, grid, kThreads, 0,
                          products, expert_ids, weights, static_cast<int>(k), cols, first_id,
                          last_id, out + first_col, out_stride);
}

}  // namespace caravan
