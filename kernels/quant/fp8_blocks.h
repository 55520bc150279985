#ifndef CARAVAN_KERNELS_QUANT_FP8_BLOCKS_H_
#define CARAVAN_KERNELS_QUANT_FP8_BLOCKS_H_

// From floats to FP8 (E4M3) with one f32 scale for each block of 128 x 128, as DeepSeek's
// checkpoints have it (DeepSeek-V3, arXiv:2412.19437, section 3.3.2; kernels/matrix.h).

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace caravan {

/// values, codes [rows, cols]; scale_inv [Fp8Blocks(rows), Fp8Blocks(cols)]: a weight is its code's
/// value times its block's scale_inv. A block's largest magnitude gets the largest code, 448: FP8
/// is a floating format, whose relative error no other scale makes much smaller. Scales have 16
/// significant bits (rounded up), so that every weight is exact in f32, and quantizing the weights
/// again gives the same bits. A block of zeros has scale 1. Thread-safe.
/// Errors: InvalidArgument - a value is not finite.
absl::Status QuantizeFp8Blocks(const float* values, int64_t rows, int64_t cols, std::byte* codes,
                               float* scale_inv);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_QUANT_FP8_BLOCKS_H_
