#ifndef CARAVAN_KERNELS_CUDA_ACTIVATIONS_H_
#define CARAVAN_KERNELS_CUDA_ACTIVATIONS_H_

// Activations as the device's integer kernels take them: blocks of 32 consecutive values of a row,
// each value code * scale with code in [-127, 127] and scale = max |x| / 127, so off by at most
// half a scale: the numbers of kernels/cpu/activation_block.h, to the bit, in the order in which
// the lanes of a warp want them. One format for all weight types.

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "base/int_math.h"
#include "kernels/cuda/cuda_stream.h"

namespace caravan {

struct ActivationScale {
  float scale;       // 0 if all values are 0; NaN if one of them is not finite
  float scaled_sum;  // scale * sum of codes, the sum exact
};

/// Rows in device memory. A row has PaddedColumns(cols) codes; those past `cols` are 0, and so are
/// their scales. Column c of 64 has its code at byte ActivationByte(c) of them: the lane that holds
/// columns 4 i .. + 3 of each 16 finds its codes of two blocks in 16 bytes.
struct ActivationRows {
  int8_t* codes = nullptr;            // [num_rows, PaddedColumns(cols)]
  ActivationScale* scales = nullptr;  // [num_rows, PaddedColumns(cols) / 32]
};

inline constexpr int64_t PaddedColumns(int64_t cols) { return RoundUp<int64_t>(cols, 256); }

inline constexpr int ActivationByte(int column) {
  return column % 16 / 4 * 16 + column / 16 * 4 + column % 4;
}

/// What ActivationRows of this shape take, and how they lie in it. `memory` aligned to 256.
inline constexpr int64_t ActivationBytes(int64_t num_rows, int64_t cols) {
  return num_rows * PaddedColumns(cols) / 32 * (32 + static_cast<int64_t>(sizeof(ActivationScale)));
}
inline ActivationRows ActivationsAt(std::byte* memory, int64_t num_rows, int64_t cols) {
  return {reinterpret_cast<int8_t*>(memory),
          reinterpret_cast<ActivationScale*>(memory + num_rows * PaddedColumns(cols))};
}

/// Queues the quantization of x [num_rows, cols] in device memory. REQUIRES: cols is a multiple of
/// 32. Errors: Internal - the launch failed.
absl::Status QuantizeRows(const CudaStream& stream, const float* x, int64_t num_rows, int64_t cols,
                          const ActivationRows& out);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_ACTIVATIONS_H_
