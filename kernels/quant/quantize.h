#ifndef CARAVAN_KERNELS_QUANT_QUANTIZE_H_
#define CARAVAN_KERNELS_QUANT_QUANTIZE_H_

// From floats to GGUF's block formats (blocks.h) with little error: for each block,
//
//   sum over i of w_i (x_i - y_i)^2,  y the dequantized values,
//
// is made small by alternation: the best codes for given scales, the best scales for given codes
// (a least-squares problem of one or two unknowns a sub-block), then the best d and dmin for given
// integers, all rounded as they are stored; from several starts, one of which is the plain
// quantization by range, so that the result is never worse than that. Depends on the values alone:
// the same bits on every machine and for every n. Thread-safe.
//
// w_i = importance[i]: what the error of column i costs, for which the mean square of its
// activation is the natural choice. Without importance all w_i are 1: a product's error is sum_i
// (x_i - y_i) a_i, and with activations a_i of which nothing is known but that they are as large in
// one column as in another, its expected square is proportional to the plain sum of squares.

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "base/dtype.h"

namespace caravan {

/// Writes `row`'s n values as DTypeBytes(dtype, n) bytes. d and dmin are always finite: values
/// beyond what d = 65504 reaches get the nearest that it does, those far below 2^-24 become 0.
/// importance [n] or null: relative, only its ratios within a block matter. Where it is 0
/// throughout a sub-block, all values of that count the same. Dequantized values give themselves
/// again where each sub-block has its format's extreme codes and the block the extreme scale and
/// min (as plain quantization leaves them); elsewhere they may change once more. REQUIRES: dtype is
/// a block format; n is a multiple of BlockOf(dtype).values. Errors: InvalidArgument - a value is
/// not finite, or an importance is not or is negative.
absl::Status QuantizeRow(DType dtype, const float* row, int64_t n, const float* importance,
                         std::byte* out);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_QUANT_QUANTIZE_H_
