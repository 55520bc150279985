#include <algorithm>

#include "base/check.h"
#include "base/int_math.h"
#include "kernels/cuda/activations.cuh"
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/matrix_values.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/overlapped_launch.cuh"
#include "kernels/cuda/row_ops.h"

namespace caravan {
namespace {

// A grid's y and z end at 65535, so rows go along x.

// out[t][c] = table[ids[t]][c]. Grid [num_rows], block 256: a thread takes every 256th column.
// Bytes: a row of the table and 4 hidden out, for each t.
__global__ void EmbedKernel(Matrix table, const int32_t* ids, float* out) {
  LetNextBegin();
  WaitForEarlier();
  const int64_t row = ids[blockIdx.x];
  float* const to = out + blockIdx.x * table.cols;
  for (int64_t c = threadIdx.x; c < table.cols; c += blockDim.x)
    to[c] = MatrixValue(table, table.dtype, row, c);
}

// Values of a row that a thread can hold.
constexpr int kHeld = 8;

// out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight. Grid [num_rows], block kRowThreads, 128 bytes
// of shared memory. Bytes: 8 width a row (of a wide one x is read again, from the cache), and 4
// width of weights, which are there before the kernel ahead has ended; 3 FLOPs a value.
__global__ void __launch_bounds__(kRowThreads)
    RmsNormKernel(const float* x, int64_t width, const float* weight, float eps, float* out) {
  __shared__ float partial[32];
  const float* const from = x + blockIdx.x * width;
  float* const to = out + blockIdx.x * width;
  LetNextBegin();
  if (width <= kHeld * kRowThreads) {
    float values[kHeld], weights[kHeld];
    const auto for_each = [&](const auto& visit) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const int i = static_cast<int>(threadIdx.x) + j * kRowThreads;
        if (i < width) visit(i, j);
      }
    };
    for_each([&](int i, int j) { weights[j] = weight[i]; });
    WaitForEarlier();
    for_each([&](int i, int j) { values[j] = from[i]; });
    float sum = 0;
    for_each([&](int, int j) { sum = fmaf(values[j], values[j], sum); });
    const float scale = InverseRmsOf(BlockSum(sum, partial), width, eps);
    for_each([&](int i, int j) { to[i] = values[j] * scale * weights[j]; });
    return;
  }
  WaitForEarlier();
  const float scale = InverseRms(from, width, eps, partial);
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) to[i] = from[i] * scale * weight[i];
}

// As RmsNormKernel, its results as blocks of 32 codes with a scale: a warp has every 32nd block.
// Bytes: 5.25 width a row.
__global__ void __launch_bounds__(kRowThreads)
    RmsNormBlocksKernel(const float* x, int64_t width, int64_t padded_columns, const float* weight,
                        float eps, ActivationRows out) {
  __shared__ float partial[32];
  LetNextBegin();
  WaitForEarlier();
  const float* const from = x + blockIdx.x * width;
  const float scale = InverseRms(from, width, eps, partial);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t block = threadIdx.x / 32; block < padded_columns / 32; block += kRowThreads / 32) {
    const int64_t i = block * 32 + lane;
    const float value = i < width ? from[i] * scale * weight[i] : 0.0f;
    StoreActivationBlock(value, lane, out, padded_columns, blockIdx.x, block);
  }
}

// y[i] += x[i]. Grid as wide as 32 blocks a multiprocessor at most, block 256. Bytes: 12 a value.
__global__ void AddKernel(const float* x, int64_t count, float* y) {
  LetNextBegin();
  WaitForEarlier();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += step) {
    y[i] += x[i];
  }
}

}  // namespace

absl::Status LaunchEmbed(const CudaStream& stream, const Matrix& table, const int32_t* ids,
                         int64_t num_rows, float* out) {
  CARAVAN_CHECK(table.dtype != DType::kI32 && table.cols % BlockOf(table.dtype).values == 0);
  if (num_rows == 0 || table.cols == 0) return absl::OkStatus();
  return LaunchOverlapped(stream, "EmbedKernel", EmbedKernel, num_rows, 256, 0, table, ids, out);
}

absl::Status LaunchRmsNorm(const CudaStream& stream, const float* x, int64_t num_rows,
                           int64_t width, const float* weight, float eps, float* out) {
  CARAVAN_CHECK(num_rows >= 0 && width >= 0);
  if (num_rows == 0 || width == 0) return absl::OkStatus();
  return LaunchOverlapped(stream, "RmsNormKernel", RmsNormKernel, num_rows, kRowThreads, 0, x,
                          width, weight, eps, out);
}

absl::Status LaunchRmsNormBlocks(const CudaStream& stream, const float* x, int64_t num_rows,
                                 int64_t width, const float* weight, float eps,
                                 const ActivationRows& out) {
  CARAVAN_CHECK(num_rows >= 0 && width >= 0 && width % 32 == 0);
  if (num_rows == 0 || width == 0) return absl::OkStatus();
  return LaunchOverlapped(stream, "RmsNormBlocksKernel", RmsNormBlocksKernel, num_rows, kRowThreads,
                          0, x, width, PaddedColumns(width), weight, eps, out);
}

absl::Status LaunchAdd(const CudaStream& stream, const float* x, int64_t count, float* y) {
  CARAVAN_CHECK(count >= 0);
  if (count == 0) return absl::OkStatus();
  const int64_t blocks =
      std::min<int64_t>(CeilDiv(count, int64_t{256}), 32 * stream.device().num_multiprocessors());
  return LaunchOverlapped(stream, "AddKernel", AddKernel, blocks, 256, 0, x, count, y);
}

}  // namespace caravan
