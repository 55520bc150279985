#ifndef CARAVAN_KERNELS_CUDA_DEVICE_BUFFER_H_
#define CARAVAN_KERNELS_CUDA_DEVICE_BUFFER_H_

// Memory of a CUDA device, and copies between it and the host's. A buffer owns its bytes; it may be
// made in one thread and used in another, by one at a time.

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_stream.h"

namespace caravan {

class DeviceBuffer {
 public:
  /// Holds nothing.
  DeviceBuffer() = default;
  /// Uninitialised bytes, aligned to 256. REQUIRES: bytes >= 0; 0 gives a buffer without data.
  /// Errors: ResourceExhausted - the device has not so much free (says how much was asked for).
  static absl::StatusOr<DeviceBuffer> Create(const CudaDevice& device, int64_t bytes);
  /// REQUIRES: nothing queued uses it any more.
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;

  int64_t bytes() const { return bytes_; }
  std::byte* data() const { return data_; }
  /// The same, as values of T.
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// Copies, in the stream's order; returns when the copy is done.
/// Errors: Internal - this or something queued before failed.
absl::Status CopyToDevice(const CudaStream& stream, const void* host, int64_t bytes, void* device);
absl::Status CopyToHost(const CudaStream& stream, const void* device, int64_t bytes, void* host);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_DEVICE_BUFFER_H_
