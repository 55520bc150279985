#include "kernels/cuda/matrix_product.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/product_launch.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {

absl::Status CheckCudaMatrix(const Matrix& w) {
  if (w.layout != MatrixLayout::kTiled16) {
    return absl::InvalidArgumentError(
        absl::StrCat("a ", DTypeName(w.dtype), " matrix of ", w.rows, " x ", w.cols,
                     " in rows: the CUDA backend multiplies by matrices in tiles of 16 rows only"));
  }
  constexpr int64_t kMaxSide = int64_t{1} << 30;
  // The float kernels' sums of all chunks lie in shared memory, of which every card has 48 KiB.
  const int64_t max_cols = TakesActivationRows(w.dtype) ? kMaxSide : 96 * kChunkColumns;
  if (w.rows > kMaxSide || w.cols > max_cols) {
    return absl::InvalidArgumentError(
        absl::StrCat("a matrix of ", w.rows, " x ", w.cols, ": too large for the CUDA backend"));
  }
  return absl::OkStatus();
}

absl::Status MultiplyRows(const CudaStream& stream, const Matrix& w, const CudaRows& x,
                          int64_t num_rows, float* out) {
  CARAVAN_RETURN_IF_ERROR(CheckCudaMatrix(w));
  // Places in activation rows are counted in 32 bits.
  CARAVAN_CHECK(num_rows * PaddedColumns(w.cols) <= std::numeric_limits<uint32_t>::max());
  ProductArgs args;
  SetWeights(w, args);
  args.x = x.blocks;
  args.x_floats = x.floats;
  args.num_rows = static_cast<int>(num_rows);
  args.out = out;
  args.out_stride = w.rows;
  const int width = WidthFor(num_rows);
  return LaunchProduct(stream, w.dtype, width, CeilDiv<int64_t>(num_rows, kWidthRows[width]), args);
}

absl::Status MultiplyFloats(const CudaStream& stream, const Matrix& w, const float* x,
                            int64_t num_rows, std::byte* scratch, float* out) {
  CudaRows rows = {.floats = x};
  if (TakesActivationRows(w.dtype)) {
    rows.blocks = ActivationsAt(scratch, num_rows, w.cols);
    CARAVAN_RETURN_IF_ERROR(QuantizeRows(stream, x, num_rows, w.cols, rows.blocks));
  }
  return MultiplyRows(stream, w, rows, num_rows, out);
}

}  // namespace caravan
