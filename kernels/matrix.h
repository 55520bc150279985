#ifndef CARAVAN_KERNELS_MATRIX_H_
#define CARAVAN_KERNELS_MATRIX_H_

// A weight matrix as it lies in memory.

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "base/int_math.h"

namespace caravan {

/// Side of the square blocks that share one scale in FP8 checkpoints (weight_block_size).
inline constexpr int64_t kFp8BlockSize = 128;

/// Blocks that cover `n` rows or columns; the last may be partial.
inline constexpr int64_t Fp8Blocks(int64_t n) { return CeilDiv(n, kFp8BlockSize); }

/// What Matrix::data is aligned to, in bytes: a cache line.
inline constexpr int64_t kMatrixAlignment = 64;

/// How the bytes of a matrix follow each other.
enum class MatrixLayout : uint8_t {
  kRowMajor,
  kTiled16,  // tiles of 16 rows (kernels/tiled/tile_layout.h): what the CPU multiplies fastest
};

/// [rows, cols]: rows = output features, cols = input features. Borrows its bytes.
struct Matrix {
  const std::byte* data = nullptr;  // aligned to kMatrixAlignment
  DType dtype = DType::kF32;        // not kI32; the block formats: cols in whole blocks
  int64_t rows = 0;
  int64_t cols = 0;
  // kF8E4M3 only: f32 [Fp8Blocks(rows), Fp8Blocks(cols)]; the weight is its f8 value times its
  // block's scale. Null: all scales are 1.
  const float* scale_inv = nullptr;
  MatrixLayout layout = MatrixLayout::kRowMajor;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_MATRIX_H_
