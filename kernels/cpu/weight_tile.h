#ifndef CARAVAN_KERNELS_CPU_WEIGHT_TILE_H_
#define CARAVAN_KERNELS_CPU_WEIGHT_TILE_H_

// Rows of a weight matrix as floats, and products with a few of them, for any dtype, layout and
// first row. Each weight is decoded once into a buffer that fits the first-level cache, whatever
// the number of activation rows. Whole tiles of tiled matrices have a faster way (tile_product.h).

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/matrix.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {

/// Columns that are summed before they are added to the result. Part of the order of sums. With
/// kTileRows rows of floats, 32 KiB.
inline constexpr int64_t kTileColumns = 512;

/// Multiply-adds of a product with `num_weights` weights, the decoding counted as two more rows.
inline constexpr int64_t ProductWork(int64_t num_weights, int64_t num_rows) {
  return num_weights * (num_rows + 2);
}

/// The function that decodes `dtype`; null where there is none but DequantizeRow.
RowOps::Decode DecoderOf(const RowOps& ops, DType dtype);

/// dst[i] = w[row, first_col + i] for i < n, scales applied. Any layout.
/// REQUIRES: first_col and n are multiples of BlockOf(w.dtype).values.
void DecodeRow(const RowOps& ops, const Matrix& w, int64_t row, int64_t first_col, int64_t n,
               float* dst);

/// out[t * out_stride + r] = x[t] . w[first_row + r] for every t and r < num_rows <= kTileRows.
/// x[t] [w.cols]. Uses scratch.weights, weight_columns and pointers[0].
void MultiplyTile(const RowOps& ops, const Matrix& w, int64_t first_row, int64_t num_rows,
                  absl::Span<const float* const> x, LaneScratch& scratch, float* out,
                  int64_t out_stride);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_WEIGHT_TILE_H_
