#include "kernels/quant/fp8_blocks.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/dtype.h"
#include "kernels/matrix.h"

namespace caravan {
namespace {

constexpr float kLargestCode = 448;
/// Keeps the product with the smallest code, 2^-9, a normal float.
constexpr float kSmallestScale = 0x1p-100f;

float ScaleFor(float largest) {
  if (largest == 0) return 1;
  const float scale = std::max(largest / kLargestCode, kSmallestScale);
  const uint32_t bits = std::bit_cast<uint32_t>(scale);
  const float rounded_up = std::bit_cast<float>((bits + 0xffu) & ~0xffu);
  // The largest floats: rounded down, so that 448 times the scale is finite.
  return std::isfinite(rounded_up * kLargestCode) ? rounded_up
                                                  : std::bit_cast<float>(bits & ~0xffu);
}

}  // namespace

absl::Status QuantizeFp8Blocks(const float* values, int64_t rows, int64_t cols, std::byte* codes,
                               float* scale_inv) {
  for (int64_t first_row = 0; first_row < rows; first_row += kFp8BlockSize) {
    const int64_t end_row = std::min(first_row + kFp8BlockSize, rows);
    for (int64_t first_col = 0; first_col < cols; first_col += kFp8BlockSize) {
      const int64_t end_col = std::min(first_col + kFp8BlockSize, cols);
      float largest = 0;
      for (int64_t r = first_row; r < end_row; ++r) {
        for (int64_t c = first_col; c < end_col; ++c) {
          const float value = values[r * cols + c];
          if (!std::isfinite(value)) {
            return absl::InvalidArgumentError(
                absl::StrCat("value [", r, ", ", c, "] is ", value, ", not finite"));
          }
          largest = std::max(largest, std::abs(value));
        }
      }
      const float scale = ScaleFor(largest);
      *scale_inv++ = scale;
      for (int64_t r = first_row; r < end_row; ++r) {
        for (int64_t c = first_col; c < end_col; ++c) {
          codes[r * cols + c] = std::byte{FloatToFloat8E4M3(values[r * cols + c] / scale)};
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace caravan
