#include "kernels/cuda/device_buffer.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "kernels/cuda/cuda_error.h"

namespace caravan {

absl::StatusOr<DeviceBuffer> DeviceBuffer::Create(const CudaDevice& device, int64_t bytes) {
  CARAVAN_CHECK(bytes >= 0);
  DeviceBuffer buffer;
  if (bytes == 0) return buffer;
  CARAVAN_RETURN_IF_ERROR(device.MakeCurrent());
  void* data = nullptr;
  CARAVAN_RETURN_IF_ERROR(Annotate(CudaStatus(cudaMalloc(&data, bytes), "cudaMalloc"),
                                   absl::StrCat(bytes, " bytes on cuda:", device.ordinal())));
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.bytes_ = bytes;
  return buffer;
}

DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

absl::Status CopyToDevice(const CudaStream& stream, const void* host, int64_t bytes, void* device) {
  CARAVAN_CUDA_RETURN_IF_ERROR(
      cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream.get()));
  return stream.Synchronize();
}

absl::Status CopyToHost(const CudaStream& stream, const void* device, int64_t bytes, void* host) {
  CARAVAN_CUDA_RETURN_IF_ERROR(
      cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream.get()));
  return stream.Synchronize();
}

}  // namespace caravan
