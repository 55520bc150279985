#ifndef CARAVAN_KERNELS_CUDA_ROW_OPS_H_
#define CARAVAN_KERNELS_CUDA_ROW_OPS_H_

// Operations on rows of activations: as those of Backend that have their names. Every pointer is
// into device memory. Launchers queue on the stream, allocate nothing and wait for nothing.
// Errors of all: those of a launch (cuda_error.h).

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/activations.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/matrix.h"

namespace caravan {

/// out[t] = table[ids[t]]. table [vocab, hidden] of any weight's format and layout; ids [num_rows];
/// out [num_rows, hidden]. REQUIRES: 0 <= ids[t] < vocab.
absl::Status LaunchEmbed(const CudaStream& stream, const Matrix& table, const int32_t* ids,
                         int64_t num_rows, float* out);

/// out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight. x, out [num_rows, width], weight [width].
/// `out` may be `x`.
absl::Status LaunchRmsNorm(const CudaStream& stream, const float* x, int64_t num_rows,
                           int64_t width, const float* weight, float eps, float* out);

/// The same as blocks, to the bit as QuantizeRows gives them, without the floats between. REQUIRES:
/// width is a multiple of 32.
absl::Status LaunchRmsNormBlocks(const CudaStream& stream, const float* x, int64_t num_rows,
                                 int64_t width, const float* weight, float eps,
                                 const ActivationRows& out);

/// y += x. [count] each.
absl::Status LaunchAdd(const CudaStream& stream, const float* x, int64_t count, float* y);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_ROW_OPS_H_
