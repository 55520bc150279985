#include "kernels/cpu/weight_tile.h"

#include <algorithm>

#include "kernels/quant/dequantize.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

constexpr int64_t kLargestBlock = 256;  // values of the largest block format

const std::byte* RowMajorBytes(const Matrix& w, int64_t row, int64_t first_col) {
  return w.data + row * DTypeBytes(w.dtype, w.cols) + DTypeBytes(w.dtype, first_col);
}

/// Asks for w[row, first_col, first_col + kTileColumns), or as much of it as there is. A tile reads
/// each row in pieces too short for the CPU's own prefetching to start.
void Prefetch(const Matrix& w, int64_t row, int64_t first_col) {
  constexpr int64_t kCacheLine = 64;
  const int64_t bytes = DTypeBytes(w.dtype, std::min(kTileColumns, w.cols - first_col));
  const std::byte* src = RowMajorBytes(w, row, first_col);
  for (int64_t i = 0; i < bytes; i += kCacheLine) __builtin_prefetch(src + i);
}

/// DecodeRow for values under one scale. src: row-major, as many as n.
void DecodeValues(const RowOps& ops, DType dtype, const std::byte* src, int64_t n, float scale,
                  float* dst) {
  if (const RowOps::Decode decode = DecoderOf(ops, dtype)) {
    decode(src, n, scale, dst);
  } else {
    DequantizeRow(dtype, src, n, dst);
  }
}

}  // namespace

RowOps::Decode DecoderOf(const RowOps& ops, DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ops.decode_f32;
    case DType::kF16:
      return ops.decode_f16;
    case DType::kBF16:
      return ops.decode_bf16;
    case DType::kF8E4M3:
      return ops.decode_f8e4m3;
    case DType::kQ8_0:
      return ops.decode_q8_0;
    default:
      return nullptr;
  }
}

void DecodeRow(const RowOps& ops, const Matrix& w, int64_t row, int64_t first_col, int64_t n,
               float* dst) {
  const bool is_tiled = w.layout == MatrixLayout::kTiled16;
  if (!is_tiled && w.scale_inv == nullptr) {
    DecodeValues(ops, w.dtype, RowMajorBytes(w, row, first_col), n, 1, dst);
    return;
  }
  // In pieces of at most a scale's block, which also are what a tiled row is gathered in.
  const int64_t step = w.scale_inv != nullptr ? kFp8BlockSize : kLargestBlock;
  const float* scales =
      w.scale_inv == nullptr ? nullptr : w.scale_inv + row / kFp8BlockSize * Fp8Blocks(w.cols);
  const int64_t end_col = first_col + n;
  std::byte gathered[kLargestBlock * sizeof(float)];
  for (int64_t col = first_col; col < end_col;) {
    const int64_t count = std::min(col / step * step + step, end_col) - col;
    const std::byte* src = gathered;
    if (is_tiled) {
      UntileRow(w, row, col, count, gathered);
    } else {
      src = RowMajorBytes(w, row, col);
    }
    const float scale = scales == nullptr ? 1 : scales[col / kFp8BlockSize];
    DecodeValues(ops, w.dtype, src, count, scale, dst + (col - first_col));
    col += count;
  }
}

void MultiplyTile(const RowOps& ops, const Matrix& w, int64_t first_row, int64_t num_rows,
                  absl::Span<const float* const> x, LaneScratch& scratch, float* out,
                  int64_t out_stride) {
  const int64_t num_x = static_cast<int64_t>(x.size());
  float* decoded = scratch.weights.Get(kTileRows * kTileColumns);
  const float** columns = scratch.weight_columns.Get(kTileRows);
  for (int64_t r = 0; r < num_rows; ++r) columns[r] = decoded + r * kTileColumns;
  const float** inputs = scratch.pointers[0].Get(num_x);
  std::copy(x.begin(), x.end(), inputs);
  for (int64_t t = 0; t < num_x; ++t) std::fill_n(out + t * out_stride, num_rows, 0.0f);

  for (int64_t col = 0; col < w.cols; col += kTileColumns) {
    const int64_t n = std::min(kTileColumns, w.cols - col);
    for (int64_t r = 0; r < num_rows; ++r) {
      if (w.layout == MatrixLayout::kRowMajor && col + kTileColumns < w.cols) {
        Prefetch(w, first_row + r, col + kTileColumns);
      }
      DecodeRow(ops, w, first_row + r, col, n, decoded + r * kTileColumns);
    }
    ops.dots(columns, num_rows, inputs, num_x, n, out, out_stride);
    for (int64_t t = 0; t < num_x; ++t) inputs[t] += kTileColumns;
  }
}

}  // namespace caravan
