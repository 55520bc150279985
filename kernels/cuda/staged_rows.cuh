#ifndef CARAVAN_KERNELS_CUDA_STAGED_ROWS_CUH_
#define CARAVAN_KERNELS_CUDA_STAGED_ROWS_CUH_

// Some rows of a matrix in shared memory, where reading single values costs little.

#include <cstdint>

#include "base/dtype.h"
#include "base/int_math.h"
#include "kernels/cuda/async_copy.cuh"
#include "kernels/matrix.h"

namespace caravan {

/// Bytes of shared memory for any `count` rows that follow each other, 0 where StageRows leaves
/// them where they are: more than `most`, or not in pieces of 16 bytes.
inline int64_t StagedBytes(const Matrix& m, int64_t count, int64_t most) {
  const int64_t row_bytes = DTypeBytes(m.dtype, m.cols);
  const bool tiled = m.layout == MatrixLayout::kTiled16;
  // Tiles are whole in memory, so rows that begin and end within some take them all.
  const int64_t bytes = (tiled ? RoundUp<int64_t>(count + 15, 16) : count) * row_bytes;
  const bool in_pieces =
      reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && (tiled || row_bytes % 16 == 0);
  return in_pieces && bytes <= most ? bytes : 0;
}

/// Begins to copy rows [first, first + count) to `shared`, a part in each of kThreads threads, and
/// returns the matrix to read them from, by their own numbers: as soon as all threads have waited
/// for the copies and for each other. shared: null for none (StagedBytes).
template <int kThreads>
__device__ inline Matrix StageRows(const Matrix& m, int64_t row_bytes, int64_t first, int64_t count,
                                   std::byte* shared) {
  if (shared == nullptr) return m;
  int64_t end = first + count;
  if (m.layout == MatrixLayout::kTiled16) {
    first = first / 16 * 16;
    end = (end + 15) / 16 * 16;
  }
  const std::byte* const from = m.data + first * row_bytes;
  const int bytes = static_cast<int>((end - first) * row_bytes);
  for (int i = static_cast<int>(threadIdx.x) * 16; i < bytes; i += kThreads * 16) {
    CopyAhead(shared + i, from + i);
  }
  CommitCopies();
  Matrix staged = m;
  staged.data = shared - first * row_bytes;
  return staged;
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_STAGED_ROWS_CUH_
