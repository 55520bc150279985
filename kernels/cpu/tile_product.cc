#include "kernels/cpu/tile_product.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cpu/weight_tile.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

// Columns that all tiles of an item go through before the next ones: what a panel unpacks.
constexpr int64_t kPanelColumns = 256;

// Rows that go through an item together. Their activations of a panel (512 bytes a row) and their
// sums (256 bytes for four tiles) stay in the second-level cache.
constexpr int64_t kRowChunk = 512;

// Up to so many rows, an item streams tile after tile: there is nothing to gain from having several
// tiles of a panel share the activations, and memory likes long runs.
constexpr int64_t kStreamedRows = 16;

/// Adds the products of columns [column, column + n) of a tile of single values; x: from `column`.
void AddValues(const CpuOps& ops, const Matrix& w, int64_t tile, int64_t column, int64_t n,
               const float** x, int64_t num_x, float* sums, int64_t sums_stride) {
  const TileOps::MultiplyValues multiply = ops.tiles.ValueMultiplierOf(w.dtype);
  const std::byte* bytes = w.data + tile * TileBytes(w.dtype, w.cols) + TileBytes(w.dtype, column);
  if (w.scale_inv == nullptr) {
    multiply(bytes, n, 1, x, num_x, sums, sums_stride);
    return;
  }
  static_assert(kPanelColumns % kFp8BlockSize == 0 && kFp8BlockSize % kFloatChunk == 0);
  const float* scales = w.scale_inv + tile * kTileRows / kFp8BlockSize * Fp8Blocks(w.cols);
  for (int64_t i = 0; i < n; i += kFp8BlockSize) {
    multiply(bytes + TileBytes(w.dtype, i), std::min(kFp8BlockSize, n - i),
             scales[(column + i) / kFp8BlockSize], x, num_x, sums, sums_stride);
    for (int64_t t = 0; t < num_x; ++t) x[t] += kFp8BlockSize;
  }
}

/// sums[t * sums_stride + r] += x[t] . w[first_tile * kTileRows + r], columns ascending.
void AddTiles(const CpuOps& ops, const Matrix& w, int64_t first_tile, int64_t num_tiles,
              const ActivationRows& x, LaneScratch& scratch, float* sums, int64_t sums_stride) {
  const bool streamed = x.count() <= kStreamedRows;
  const int64_t tiles_together = streamed ? 1 : num_tiles;
  const int64_t columns_together = streamed ? w.cols : kPanelColumns;
  const TileOps::MultiplyBlocks multiply = ops.tiles.BlockMultiplierOf(w.dtype);
  const float** floats = scratch.pointers[0].Get(x.count());
  const ActivationBlock** blocks = scratch.block_pointers.Get(x.count());
  for (int64_t first = 0; first < num_tiles; first += tiles_together) {
    for (int64_t column = 0; column < w.cols; column += columns_together) {
      const int64_t n = std::min(columns_together, w.cols - column);
      for (int64_t tile = first; tile < first + tiles_together; ++tile) {
        float* tile_sums = sums + tile * kTileRows;
        if (multiply == nullptr) {
          for (int64_t t = 0; t < x.count(); ++t) floats[t] = x.floats[t] + column;
          AddValues(ops, w, first_tile + tile, column, n, floats, x.count(), tile_sums,
                    sums_stride);
          continue;
        }
        for (int64_t t = 0; t < x.count(); ++t) blocks[t] = x.blocks[t] + column / kActivationBlock;
        multiply(
            w.data + (first_tile + tile) * TileBytes(w.dtype, w.cols) + TileBytes(w.dtype, column),
            n / BlockOf(w.dtype).values, blocks, x.count(), tile_sums, sums_stride);
      }
    }
  }
}

void MultiplyRowMajor(const CpuOps& ops, const Matrix& w, int64_t first_tile, int64_t num_tiles,
                      const ActivationRows& x, LaneScratch& scratch, float* out,
                      int64_t out_stride) {
  for (int64_t i = 0; i < num_tiles; ++i) {
    const int64_t first = (first_tile + i) * kTileRows;
    MultiplyTile(ops.rows, w, first, std::min(kTileRows, w.rows - first), x.floats, scratch,
                 out + i * kTileRows, out_stride);
  }
}

}  // namespace

bool TakesBlocks(const Matrix& w) {
  return w.layout == MatrixLayout::kTiled16 && BlockOf(w.dtype).values > 1;
}

int64_t TilesPerItem(const Matrix& w, int64_t num_matrices, int64_t num_rows) {
  constexpr int64_t kStreamedBytes = 256 << 10;
  if (w.layout == MatrixLayout::kRowMajor) return 1;
  if (num_rows > kStreamedRows) return 4;
  const int64_t bytes = std::max<int64_t>(num_matrices * TileBytes(w.dtype, w.cols), 1);
  return std::clamp<int64_t>(kStreamedBytes / bytes / 2 * 2, 2, 8);
}

void MultiplyTiles(const CpuOps& ops, const Matrix& w, int64_t first_tile, int64_t num_tiles,
                   const ActivationRows& x, LaneScratch& scratch, float* out, int64_t out_stride) {
  num_tiles = std::min(num_tiles, Tiles(w.rows) - first_tile);
  if (w.layout == MatrixLayout::kRowMajor) {
    MultiplyRowMajor(ops, w, first_tile, num_tiles, x, scratch, out, out_stride);
    return;
  }
  CARAVAN_CHECK(!TakesBlocks(w) || x.floats.empty() || !x.blocks.empty());
  const int64_t width = num_tiles * kTileRows;
  const int64_t num_columns = std::min(width, w.rows - first_tile * kTileRows);
  for (int64_t first = 0; first < x.count(); first += kRowChunk) {
    const int64_t count = std::min(kRowChunk, x.count() - first);
    // Sums that lie together share the caches with what else an item needs; rows of `out` far apart
    // would crowd into a few sets of them.
    const bool in_place = out_stride == width && num_columns == width;
    float* sums = in_place ? out + first * width : scratch.tile_sums.Get(count * width);
    std::fill_n(sums, count * width, 0.0f);
    ActivationRows chunk;
    if (!x.floats.empty()) chunk.floats = x.floats.subspan(first, count);
    if (!x.blocks.empty()) chunk.blocks = x.blocks.subspan(first, count);
    AddTiles(ops, w, first_tile, num_tiles, chunk, scratch, sums, width);
    if (in_place) continue;
    for (int64_t t = 0; t < count; ++t) {
      std::copy_n(sums + t * width, num_columns, out + (first + t) * out_stride);
    }
  }
}

void ActivationBlocks::Quantize(const TileOps& ops, Lanes& lanes, const float* x, int64_t num_rows,
                                int64_t cols) {
  Resize(num_rows, cols);
  lanes.ForEach(num_rows, 2 * num_rows * cols,
                [&](int64_t row, LaneScratch&) { ops.quantize(x + row * cols, cols, Row(row)); });
}

void ActivationBlocks::Resize(int64_t num_rows, int64_t cols) {
  CARAVAN_CHECK(cols % kActivationBlock == 0);
  row_blocks_ = cols / kActivationBlock;
  blocks_ = storage_.Get(num_rows * row_blocks_);
}

}  // namespace caravan
