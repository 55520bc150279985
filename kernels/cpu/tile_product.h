#ifndef CARAVAN_KERNELS_CPU_TILE_PRODUCT_H_
#define CARAVAN_KERNELS_CPU_TILE_PRODUCT_H_

// Products with a range of a weight matrix's tiles, whatever its layout: the unit of work of every
// matrix product. A tiled matrix of a block format takes its activations as ActivationBlocks, all
// others as floats.

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/cpu/activation_block.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/cpu/tile_ops.h"
#include "kernels/matrix.h"

namespace caravan {

/// The tables of one instruction set.
struct CpuOps {
  const RowOps& rows;
  const TileOps& tiles;
};

/// Whether products with w take blocks.
bool TakesBlocks(const Matrix& w);

/// Activation rows in the forms that the caller has; each span is empty or as long as the other.
struct ActivationRows {
  absl::Span<const float* const> floats;            // [num_rows] of [cols]
  absl::Span<const ActivationBlock* const> blocks;  // [num_rows] of [cols / kActivationBlock]

  int64_t count() const {
    return static_cast<int64_t>(floats.empty() ? blocks.size() : floats.size());
  }
};

/// How many tiles one item of parallel work should have: enough bytes in a run to stream, and few
/// enough to share out. Of a tiled matrix an even number, so that an item's columns are whole
/// activation blocks. `num_matrices`: that an item takes the same tiles of.
int64_t TilesPerItem(const Matrix& w, int64_t num_matrices, int64_t num_rows);

/// out[t * out_stride + r] = x[t] . w[first_tile * kTileRows + r] for every row of x and r below
/// num_tiles * kTileRows and the end of w. Uses scratch.weights, weight_columns, tile_sums,
/// block_pointers and pointers[0].
void MultiplyTiles(const CpuOps& ops, const Matrix& w, int64_t first_tile, int64_t num_tiles,
                   const ActivationRows& x, LaneScratch& scratch, float* out, int64_t out_stride);

/// Rows of activations as blocks, in memory that is kept.
class ActivationBlocks {
 public:
  /// Quantizes x [num_rows, cols] on all lanes. REQUIRES: cols is a multiple of kActivationBlock.
  void Quantize(const TileOps& ops, Lanes& lanes, const float* x, int64_t num_rows, int64_t cols);

  /// Makes room for rows that the caller fills.
  void Resize(int64_t num_rows, int64_t cols);

  ActivationBlock* Row(int64_t row) { return blocks_ + row * row_blocks_; }

 private:
  ScratchBuffer<ActivationBlock> storage_;
  ActivationBlock* blocks_ = nullptr;  // [num_rows, row_blocks_]
  int64_t row_blocks_ = 0;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_TILE_PRODUCT_H_
