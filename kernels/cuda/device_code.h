#ifndef CARAVAN_KERNELS_CUDA_DEVICE_CODE_H_
#define CARAVAN_KERNELS_CUDA_DEVICE_CODE_H_

// Whether this binary holds code for a device.

#include "absl/status/status.h"

namespace caravan {

/// For the calling thread's current device. Cheap: launches nothing.
/// Errors: Unavailable - it was built for other architectures.
absl::Status CheckDeviceCode();

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_DEVICE_CODE_H_
