#ifndef CARAVAN_KERNELS_CUDA_DEVICE_CODE_H_
#define CARAVAN_KERNELS_CUDA_DEVICE_CODE_H_

// Which code this binary holds for a device.

#include "absl/status/statusor.h"

namespace caravan {

/// The architecture (75, 90, ...) that the code was compiled for which runs on the calling thread's
/// current device: at most the device's own. Cheap: launches nothing.
/// Errors: Unavailable - the binary was built for other architectures.
absl::StatusOr<int> DeviceCodeArchitecture();

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_DEVICE_CODE_H_
