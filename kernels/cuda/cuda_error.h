#ifndef CARAVAN_KERNELS_CUDA_CUDA_ERROR_H_
#define CARAVAN_KERNELS_CUDA_CUDA_ERROR_H_

// CUDA's error codes as absl::Status, with the name of the call and CUDA's own words. For the
// thread that made the call.

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"

namespace caravan {

/// `error`: a cudaError_t. `call`: the call as written; what follows its name is left out.
/// CUDA forgets the error, where the device is still of use after it.
/// Unavailable - no driver, no card, or too old a driver; ResourceExhausted - out of memory;
/// Internal - all else.
absl::Status CudaStatus(int error, absl::string_view call);

/// Whether the kernel that this thread launched just now could be launched. What goes wrong while
/// it runs comes later, from whatever waits for it.
absl::Status LaunchStatus(absl::string_view kernel);

}  // namespace caravan

/// Returns from the enclosing function when a call of CUDA's runtime fails.
#define CARAVAN_CUDA_RETURN_IF_ERROR(call) \
  CARAVAN_RETURN_IF_ERROR(::caravan::CudaStatus(static_cast<int>(call), #call))

#endif  // CARAVAN_KERNELS_CUDA_CUDA_ERROR_H_
