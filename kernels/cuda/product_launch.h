#ifndef CARAVAN_KERNELS_CUDA_PRODUCT_LAUNCH_H_
#define CARAVAN_KERNELS_CUDA_PRODUCT_LAUNCH_H_

// Which kernel a product takes, how its thread blocks share the work, and the launch.

#include <cstdint>

#include "absl/status/status.h"
#include "base/dtype.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/product_args.h"
#include "kernels/matrix.h"

namespace caravan {

/// Whether products with such weights take ActivationRows; else they take floats.
bool TakesActivationRows(DType dtype);

/// Index in kWidthRows of the narrowest kernel for passes of up to `rows` rows, of the widest where
/// there is none.
int WidthFor(int64_t rows);

/// Fills what `args` says of the weights' shape: that of w, and all its tiles.
void SetWeights(const Matrix& w, ProductArgs& args);

/// Queues the product of passes [0, max_passes), each of up to kWidthRows[width] rows; those that
/// args.num_passes does not count end at once. Sets how args shares the work.
/// REQUIRES: two matrices only of a format that takes ActivationRows.
/// Errors: Internal - the launch failed.
absl::Status LaunchProduct(const CudaStream& stream, DType dtype, int width, int64_t max_passes,
                           ProductArgs args);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_PRODUCT_LAUNCH_H_
