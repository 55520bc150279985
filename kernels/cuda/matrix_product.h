#ifndef CARAVAN_KERNELS_CUDA_MATRIX_PRODUCT_H_
#define CARAVAN_KERNELS_CUDA_MATRIX_PRODUCT_H_

// out = x w^T with weights in device memory, in tiles (MatrixLayout::kTiled16), of any format.
//
// A row's result depends on that row, the weights and the number of columns alone
// (product_args.h gives the order of the sums): it is the same to the bit whatever rides beside it
// and whichever kernel takes it. Up to 32 rows go through the weights together: up to 16 read each
// weight once.
//
// Weights may be read before the kernels ahead on the stream have ended (overlapped_launch.cuh), so
// it is copies that bring them, not kernels.

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/activations.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/matrix.h"

namespace caravan {

/// Whether the device multiplies by w.
/// Errors: InvalidArgument - rows in another layout than tiles; too large a shape.
absl::Status CheckCudaMatrix(const Matrix& w);

/// Activations in the forms that the caller has: products with block formats take `blocks`
/// (QuantizeRows), others floats.
struct CudaRows {
  const float* floats = nullptr;  // [num_rows, cols]
  ActivationRows blocks = {};     // of the same
};

/// Queues out = x w^T. w.data, w.scale_inv, x and out [num_rows, w.rows] are in device memory.
/// Allocates nothing and does not wait.
/// Errors: those of CheckCudaMatrix; Internal - the launch failed.
absl::Status MultiplyRows(const CudaStream& stream, const Matrix& w, const CudaRows& x,
                          int64_t num_rows, float* out);

/// The same from floats alone. scratch: ActivationBytes(num_rows, w.cols), aligned to 256, or null
/// where the format takes floats.
absl::Status MultiplyFloats(const CudaStream& stream, const Matrix& w, const float* x,
                            int64_t num_rows, std::byte* scratch, float* out);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_MATRIX_PRODUCT_H_
