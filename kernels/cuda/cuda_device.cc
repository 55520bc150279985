#include "kernels/cuda/cuda_device.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_driver.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/device_code.h"

namespace caravan {

absl::StatusOr<int> CountCudaDevices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    int driver_version = 0;
    static_cast<void>(cudaDriverGetVersion(&driver_version));
    static_cast<void>(cudaGetLastError());
    return InsufficientDriver(driver_version, CUDART_VERSION);
  }
  CARAVAN_RETURN_IF_ERROR(CudaStatus(error, "cudaGetDeviceCount"));
  if (count == 0) return CudaStatus(cudaErrorNoDevice, "cudaGetDeviceCount");
  return count;
}

absl::StatusOr<CudaDevice> CudaDevice::Open(int ordinal) {
  CARAVAN_ASSIGN_OR_RETURN(const int count, CountCudaDevices());
  if (ordinal < 0 || ordinal >= count) {
    return absl::InvalidArgumentError(absl::StrCat("there is no cuda:", ordinal,
                                                   ": this machine has ", count, " CUDA device",
                                                   count == 1 ? "" : "s"));
  }
  cudaDeviceProp properties;
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, ordinal));
  CudaDevice device;
  device.ordinal_ = ordinal;
  device.name_ = properties.name;
  device.compute_capability_ = 10 * properties.major + properties.minor;
  device.num_multiprocessors_ = properties.multiProcessorCount;
  device.l2_bytes_ = properties.l2CacheSize;
  device.max_shared_bytes_ = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  if (device.compute_capability_ < kMinComputeCapability) {
    return absl::UnavailableError(
        absl::StrCat(device.Title(), " has compute capability ", properties.major, ".",
                     properties.minor, "; ", kMinComputeCapability / 10, ".",
                     kMinComputeCapability % 10, " is the oldest that will do"));
  }
  CARAVAN_RETURN_IF_ERROR(device.MakeCurrent());
  const absl::StatusOr<int> code = DeviceCodeArchitecture();
  CARAVAN_RETURN_IF_ERROR(Annotate(code.status(), device.Title()));
  device.overlaps_kernels_ = *code >= 90;
  return device;
}

absl::StatusOr<CudaMemoryInfo> CudaDevice::Memory() const {
  CARAVAN_RETURN_IF_ERROR(MakeCurrent());
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaMemGetInfo(&free_bytes, &total_bytes));
  return CudaMemoryInfo{static_cast<int64_t>(free_bytes), static_cast<int64_t>(total_bytes)};
}

absl::Status CudaDevice::MakeCurrent() const {
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaSetDevice(ordinal_));
  return absl::OkStatus();
}

std::string CudaDevice::Title() const { return absl::StrCat("cuda:", ordinal_, " (", name_, ")"); }

}  // namespace caravan
