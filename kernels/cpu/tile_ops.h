#ifndef CARAVAN_KERNELS_CPU_TILE_OPS_H_
#define CARAVAN_KERNELS_CPU_TILE_OPS_H_

// The inner loops over tiled weights (kernels/tiled/tile_layout.h): one table of functions for each
// instruction set. All are pure functions of what they are given.
//
// Order of sums, for each pair of an output row and an activation row alone:
// - block formats: for each sub-block (16 or 32 values) in ascending order, the exact integer dot
//   product of codes, then sum = fma(float(dot), scale_w * scale_x, sum), and for formats with
//   minima sum = fma(min_w, -(scale_x * sum of codes), sum). scale_w and min_w are the block's
//   float times the sub-block's integer, which is exact. Same bits in every table: the portable
//   one fuses multiply and add too.
// - floats: for each 64 columns in ascending order, their products are added up one after another
//   from zero, then to the sum. Multiply and add are fused but in the portable table.

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "kernels/cpu/activation_block.h"
#include "kernels/cpu/row_ops.h"

namespace caravan {

/// Columns whose products are added up before they join the sum of a float product.
inline constexpr int64_t kFloatChunk = 64;

struct TileOps {
  CpuIsa isa;

  // x [n] as blocks: out [n / kActivationBlock]. n is a multiple of kActivationBlock. The same bits
  // in every table.
  void (*quantize)(const float* x, int64_t n, ActivationBlock* out);

  // sums[i * sums_stride + r] += x[i] . w[r] over `num_blocks` blocks of the tile's 16 rows w, for
  // i < num_x. `blocks`: the first of them in the tile. x[i]: the activations from the same column
  // on.
  using MultiplyBlocks = void (*)(const std::byte* blocks, int64_t num_blocks,
                                  const ActivationBlock* const* x, int64_t num_x, float* sums,
                                  int64_t sums_stride);
  MultiplyBlocks multiply_q4_0;
  MultiplyBlocks multiply_q8_0;
  MultiplyBlocks multiply_q2_k;
  MultiplyBlocks multiply_q3_k;
  MultiplyBlocks multiply_q4_k;
  MultiplyBlocks multiply_q5_k;
  MultiplyBlocks multiply_q6_k;

  // As above for n columns of decoded weights, w [n, 16]. Cuts chunks from the first column.
  void (*multiply_floats)(const float* w, int64_t n, const float* const* x, int64_t num_x,
                          float* sums, int64_t sums_stride);

  /// The function for a block format; null for other dtypes.
  MultiplyBlocks MultiplierOf(DType dtype) const;
};

/// The table for `isa`; lives forever.
/// Errors: FailedPrecondition - this CPU, or this build, lacks it.
absl::StatusOr<const TileOps*> TileOpsFor(CpuIsa isa);

/// One table for each instruction set. Null where the build has none.
const TileOps& PortableTileOps();
const TileOps* Avx2TileOps();
const TileOps* Avx512TileOps();

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_TILE_OPS_H_
