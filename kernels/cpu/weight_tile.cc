#include "kernels/cpu/weight_tile.h"

#include <algorithm>

#include "base/check.h"

namespace caravan {
namespace {

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
    default:
      break;
  }
  CARAVAN_CHECK(false && "not a weight's dtype");
  return nullptr;
}

int64_t WeightBytes(DType dtype) {
  return dtype == DType::kF32 ? 4 : dtype == DType::kF8E4M3 ? 1 : 2;
}

/// Asks for w[row, first_col, first_col + kTileColumns), or as much of it as there is. A tile reads
/// each row in pieces too short for the CPU's own prefetching to start.
void Prefetch(const Matrix& w, int64_t row, int64_t first_col) {
  constexpr int64_t kCacheLine = 64;
  const int64_t n = std::min(kTileColumns, w.cols - first_col);
  const std::byte* src = w.data + (row * w.cols + first_col) * WeightBytes(w.dtype);
  for (int64_t i = 0; i < n * WeightBytes(w.dtype); i += kCacheLine) __builtin_prefetch(src + i);
}

}  // namespace

void DecodeRow(const RowOps& ops, const Matrix& w, int64_t row, int64_t first_col, int64_t n,
               float* dst) {
  const RowOps::Decode decode = DecoderOf(ops, w.dtype);
  const std::byte* src = w.data + (row * w.cols + first_col) * WeightBytes(w.dtype);
  if (w.dtype != DType::kF8E4M3 || w.scale_inv == nullptr) {
    decode(src, n, 1, dst);
    return;
  }
  const float* scales = w.scale_inv + row / kFp8BlockSize * Fp8Blocks(w.cols);
  const int64_t end_col = first_col + n;
  for (int64_t col = first_col; col < end_col;) {
    const int64_t block = col / kFp8BlockSize;
    const int64_t count = std::min((block + 1) * kFp8BlockSize, end_col) - col;
    decode(src + (col - first_col), count, scales[block], dst + (col - first_col));
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
      Prefetch(w, first_row + r, col + kTileColumns);
      DecodeRow(ops, w, first_row + r, col, n, decoded + r * kTileColumns);
    }
    ops.dots(columns, num_rows, inputs, num_x, n, out, out_stride);
    for (int64_t t = 0; t < num_x; ++t) inputs[t] += kTileColumns;
  }
}

}  // namespace caravan
