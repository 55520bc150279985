#ifndef CARAVAN_KERNELS_TILED_TILE_LAYOUT_H_
#define CARAVAN_KERNELS_TILED_TILE_LAYOUT_H_

// The layout that the CPU's matrix kernels read: tiles of 16 output rows, the rows' bytes
// interleaved so that one vector register holds the same place of all 16. It is a permutation of
// the bytes of the row-major matrix, with rows of zeros added up to a whole tile: nothing is lost
// or recomputed either way. A public disk format: docs/packed-format.md describes it with offsets.
//
// Pure functions of their arguments; tiles do not overlap and may be written by different threads.

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "base/dtype.h"
#include "base/int_math.h"
#include "kernels/matrix.h"

namespace caravan {

/// Output rows of a tile.
inline constexpr int64_t kTileRows = 16;

inline constexpr int64_t Tiles(int64_t rows) { return CeilDiv(rows, kTileRows); }

/// A part of a format's block (BlockOf): `bytes` at `offset` of a row's block, in a tile
/// interleaved over the 16 rows in pieces of `unit` bytes.
struct TileField {
  int64_t offset;
  int64_t bytes;
  int64_t unit;
};

/// The fields of a block in the order in which a tile holds them. They cover the block exactly.
/// For formats of single values: one field of one value.
absl::Span<const TileField> TileFieldsOf(DType dtype);

/// Bytes of one tile. REQUIRES: cols is a multiple of BlockOf(dtype).values.
int64_t TileBytes(DType dtype, int64_t cols);

/// Bytes of a tiled matrix: those of its row-major form, the last tile made whole.
int64_t TiledBytes(DType dtype, int64_t rows, int64_t cols);

/// Of w.data, in its layout.
int64_t MatrixBytes(const Matrix& w);

/// Writes the tiles of a row-major matrix. row_major [rows, cols]; tiled: TiledBytes(...) bytes.
/// Scales that lie beside the values (Matrix::scale_inv) stay as they are.
/// REQUIRES: cols is a multiple of BlockOf(dtype).values; the two do not overlap.
void TileMatrix(DType dtype, int64_t rows, int64_t cols, const std::byte* row_major,
                std::byte* tiled);

/// The inverse of TileMatrix.
void UntileMatrix(DType dtype, int64_t rows, int64_t cols, const std::byte* tiled,
                  std::byte* row_major);

/// Copies values [first_col, first_col + n) of one row of a tiled matrix, row-major, to `out`:
/// DTypeBytes(dtype, n) bytes. REQUIRES: both are multiples of BlockOf(dtype).values.
void UntileRow(const Matrix& tiled, int64_t row, int64_t first_col, int64_t n, std::byte* out);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_TILED_TILE_LAYOUT_H_
