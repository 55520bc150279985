#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/device_code.h"

namespace caravan {
namespace {

// All kernels are compiled for the same architectures, so any one of them tells.
__global__ void ProbeKernel() {}

}  // namespace

absl::StatusOr<int> DeviceCodeArchitecture() {
  cudaFuncAttributes attributes;
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaFuncGetAttributes(&attributes, ProbeKernel));
  return attributes.ptxVersion;
}

}  // namespace caravan
