#ifndef CARAVAN_KERNELS_CUDA_CUDA_DRIVER_H_
#define CARAVAN_KERNELS_CUDA_CUDA_DRIVER_H_

// What CUDA's runtime means where it calls the driver insufficient, which is its word for none,
// too.

#include "absl/status/status.h"

namespace caravan {

/// Unavailable, with both versions, which are as CUDA says them: 12080 is 12.8. driver_version: of
/// the newest CUDA that the driver serves; 0: there is no driver.
absl::Status InsufficientDriver(int driver_version, int runtime_version);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_CUDA_DRIVER_H_
