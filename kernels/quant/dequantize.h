#ifndef CARAVAN_KERNELS_QUANT_DEQUANTIZE_H_
#define CARAVAN_KERNELS_QUANT_DEQUANTIZE_H_

// From any stored number format to floats: plain, the yardstick of what the fast kernels decode.

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace caravan {

/// Writes the n values of `row` (DTypeBytes(dtype, n) bytes, any alignment): their exact values in
/// double, the nearest floats in float (which are exact but for Q2_K, Q4_K and Q5_K, whose min is
/// subtracted). F8 has scale 1. A scale that is not finite gives values that are not.
/// REQUIRES: dtype is not kI32; n is a multiple of BlockOf(dtype).values.
void DequantizeRow(DType dtype, const std::byte* row, int64_t n, float* out);
void DequantizeRow(DType dtype, const std::byte* row, int64_t n, double* out);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_QUANT_DEQUANTIZE_H_
