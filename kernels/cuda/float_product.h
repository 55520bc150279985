#ifndef CARAVAN_KERNELS_CUDA_FLOAT_PRODUCT_H_
#define CARAVAN_KERNELS_CUDA_FLOAT_PRODUCT_H_

// The product kernels of the formats of single values.

#include "base/dtype.h"

namespace caravan {

inline constexpr int kNumFloatWidths = 3;
inline constexpr int kFloatWidthRows[kNumFloatWidths] = {1, 4, 8};

/// Of a block.
inline constexpr int kMaxFloatWarps = 16;

/// Kernels of (ProductArgs, int rows of a pass) that take kFloatWidthRows rows at a time; null for
/// other formats.
struct FloatProductKernels {
  const void* widths[kNumFloatWidths] = {};
};
FloatProductKernels FloatProductKernelsOf(DType dtype);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_FLOAT_PRODUCT_H_
