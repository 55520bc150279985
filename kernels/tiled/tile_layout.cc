#include "kernels/tiled/tile_layout.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace caravan {
namespace {

// Scales first, then what they scale. Codes go by four bytes, so that a row's piece of a 64-byte
// line is what an integer dot product of four bytes takes; scales go by whole values.
constexpr TileField kF32[] = {{0, 4, 4}};
constexpr TileField kHalf[] = {{0, 2, 2}};
constexpr TileField kF8E4M3[] = {{0, 1, 1}};
constexpr TileField kQ4_0[] = {{0, 2, 2}, {2, 16, 4}};
constexpr TileField kQ8_0[] = {{0, 2, 2}, {2, 32, 4}};
constexpr TileField kQ2_K[] = {{80, 2, 2}, {82, 2, 2}, {0, 16, 1}, {16, 64, 4}};
constexpr TileField kQ3_K[] = {{108, 2, 2}, {96, 12, 1}, {0, 32, 4}, {32, 64, 4}};
constexpr TileField kQ4_K[] = {{0, 2, 2}, {2, 2, 2}, {4, 12, 1}, {16, 128, 4}};
constexpr TileField kQ5_K[] = {{0, 2, 2}, {2, 2, 2}, {4, 12, 1}, {16, 32, 4}, {48, 128, 4}};
constexpr TileField kQ6_K[] = {{208, 2, 2}, {192, 16, 1}, {128, 64, 4}, {0, 128, 4}};

/// Copies the pieces of one field between `row`, which holds them one after another, and `tile`,
/// which holds one every kTileRows * kUnit bytes.
template <int64_t kUnit>
void CopyOut(const std::byte* row, int64_t bytes, std::byte* tile) {
  for (int64_t i = 0; i < bytes; i += kUnit) std::memcpy(tile + i * kTileRows, row + i, kUnit);
}

template <int64_t kUnit>
void CopyBack(const std::byte* tile, int64_t bytes, std::byte* row) {
  for (int64_t i = 0; i < bytes; i += kUnit) std::memcpy(row + i, tile + i * kTileRows, kUnit);
}

using Copy = void (*)(const std::byte* from, int64_t bytes, std::byte* to);

Copy CopyOutOf(int64_t unit) {
  return unit == 1 ? CopyOut<1> : unit == 2 ? CopyOut<2> : CopyOut<4>;
}

Copy CopyBackOf(int64_t unit) {
  return unit == 1 ? CopyBack<1> : unit == 2 ? CopyBack<2> : CopyBack<4>;
}

/// Calls visit(field, place in a row's bytes, place in a tile's bytes) for the fields of all blocks
/// of `cols` values. Single values make one long field: the same places in fewer calls.
template <typename Visit>
void ForEachField(DType dtype, int64_t cols, const Visit& visit) {
  const DTypeBlock block = BlockOf(dtype);
  const absl::Span<const TileField> fields = TileFieldsOf(dtype);
  if (block.values == 1) {
    visit({0, cols * block.bytes, fields[0].unit}, 0, 0);
    return;
  }
  int64_t tile_at = 0;
  for (int64_t row_at = 0; row_at < DTypeBytes(dtype, cols); row_at += block.bytes) {
    for (const TileField& field : fields) {
      visit(field, row_at + field.offset, tile_at);
      tile_at += field.bytes * kTileRows;
    }
  }
}

}  // namespace

absl::Span<const TileField> TileFieldsOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return kF32;
    case DType::kF16:
    case DType::kBF16:
      return kHalf;
    case DType::kF8E4M3:
      return kF8E4M3;
    case DType::kQ4_0:
      return kQ4_0;
    case DType::kQ8_0:
      return kQ8_0;
    case DType::kQ2_K:
      return kQ2_K;
    case DType::kQ3_K:
      return kQ3_K;
    case DType::kQ4_K:
      return kQ4_K;
    case DType::kQ5_K:
      return kQ5_K;
    case DType::kQ6_K:
      return kQ6_K;
    case DType::kI32:
      break;
  }
  CARAVAN_CHECK(false && "not a weight's dtype");
  return {};
}

int64_t TileBytes(DType dtype, int64_t cols) { return kTileRows * DTypeBytes(dtype, cols); }

int64_t TiledBytes(DType dtype, int64_t rows, int64_t cols) {
  return Tiles(rows) * TileBytes(dtype, cols);
}

int64_t MatrixBytes(const Matrix& w) {
  return w.layout == MatrixLayout::kTiled16 ? TiledBytes(w.dtype, w.rows, w.cols)
                                            : w.rows * DTypeBytes(w.dtype, w.cols);
}

void TileMatrix(DType dtype, int64_t rows, int64_t cols, const std::byte* row_major,
                std::byte* tiled) {
  const int64_t row_bytes = DTypeBytes(dtype, cols);
  if (row_bytes == 0) return;
  for (int64_t first = 0; first < rows; first += kTileRows) {
    const int64_t count = std::min(kTileRows, rows - first);
    std::byte* tile = tiled + first * row_bytes;
    if (count < kTileRows) std::memset(tile, 0, kTileRows * row_bytes);
    ForEachField(dtype, cols, [&](const TileField& field, int64_t row_at, int64_t tile_at) {
      const Copy copy = CopyOutOf(field.unit);
      for (int64_t r = 0; r < count; ++r) {
        copy(row_major + (first + r) * row_bytes + row_at, field.bytes,
             tile + tile_at + r * field.unit);
      }
    });
  }
}

void UntileMatrix(DType dtype, int64_t rows, int64_t cols, const std::byte* tiled,
                  std::byte* row_major) {
  const Matrix matrix = {
      .data = tiled, .dtype = dtype, .rows = rows, .cols = cols, .layout = MatrixLayout::kTiled16};
  for (int64_t row = 0; row < rows; ++row) {
    UntileRow(matrix, row, 0, cols, row_major + row * DTypeBytes(dtype, cols));
  }
}

void UntileRow(const Matrix& tiled, int64_t row, int64_t first_col, int64_t n, std::byte* out) {
  CARAVAN_CHECK(tiled.layout == MatrixLayout::kTiled16);
  const std::byte* tile = tiled.data + row / kTileRows * TileBytes(tiled.dtype, tiled.cols) +
                          TileBytes(tiled.dtype, first_col);
  ForEachField(tiled.dtype, n, [&](const TileField& field, int64_t row_at, int64_t tile_at) {
    CopyBackOf(field.unit)(tile + tile_at + row % kTileRows * field.unit, field.bytes,
                           out + row_at);
  });
}

}  // namespace caravan
