#ifndef CARAVAN_KERNELS_CUDA_ROUTER_H_
#define CARAVAN_KERNELS_CUDA_ROUTER_H_

// Backend::Route on the device.

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_stream.h"

namespace caravan {

/// As Backend::Route, every pointer into device memory. Queues on the stream.
/// REQUIRES: n_routed_experts <= 2048, num_experts_per_tok <= 256.
/// Errors: those of a launch (cuda_error.h).
absl::Status LaunchRoute(const CudaStream& stream, const RouterShape& shape, const float* logits,
                         const float* bias, int64_t num_rows, int32_t* expert_ids, float* weights);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_ROUTER_H_
