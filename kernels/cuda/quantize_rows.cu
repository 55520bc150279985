#include "base/check.h"
#include "kernels/cuda/activations.cuh"
#include "kernels/cuda/activations.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/overlapped_launch.cuh"

namespace caravan {
namespace {

constexpr int kWarps = 8;

/// code = round(x / scale), scale = max |x| / 127 over 32 values.
/// x [num_rows, cols] f32. Grid: a warp for each block of 32, padding included. No shared memory.
/// Bytes: 4 read and 1.25 written a value.
__global__ void __launch_bounds__(32 * kWarps)
    QuantizeRowsKernel(const float* x, int64_t cols, int64_t padded_columns, int64_t num_blocks,
                       ActivationRows out) {
  LetNextBegin();
  WaitForEarlier();
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (item >= num_blocks) return;
  const int lane = threadIdx.x % 32;
  const int64_t row = item / (padded_columns / 32);
  const int64_t block = item % (padded_columns / 32);
  const float value = block * 32 < cols ? x[row * cols + block * 32 + lane] : 0.0f;
  StoreActivationBlock(value, lane, out, padded_columns, row, block);
}

}  // namespace

absl::Status QuantizeRows(const CudaStream& stream, const float* x, int64_t num_rows, int64_t cols,
                          const ActivationRows& out) {
  CARAVAN_CHECK(cols % 32 == 0);
  const int64_t num_blocks = num_rows * PaddedColumns(cols) / 32;
  if (num_blocks == 0) return absl::OkStatus();
  return LaunchOverlapped(stream, "QuantizeRowsKernel", QuantizeRowsKernel,
                          static_cast<unsigned>(CeilDiv<int64_t>(num_blocks, kWarps)), 32 * kWarps,
                          0, x, cols, PaddedColumns(cols), num_blocks, out);
}

}  // namespace caravan
