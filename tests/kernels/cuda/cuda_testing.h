#ifndef CARAVAN_TESTS_KERNELS_CUDA_CUDA_TESTING_H_
#define CARAVAN_TESTS_KERNELS_CUDA_CUDA_TESTING_H_

// What tests on a CUDA device share. Without a device they are skipped, by the driver's words.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/device_buffer.h"

namespace caravan {

/// Tests over the first device and a stream on it.
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<CudaDevice> device = CudaDevice::Open(0);
    if (!device.ok()) GTEST_SKIP() << device.status();
    absl::StatusOr<std::unique_ptr<CudaStream>> stream = CudaStream::Create(*device);
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_ = *std::move(stream);
  }

  const CudaDevice& device() const { return stream_->device(); }
  const CudaStream& stream() const { return *stream_; }

  /// A buffer with a copy of the values.
  template <typename T>
  DeviceBuffer ToDevice(const std::vector<T>& values) const {
    const int64_t bytes = static_cast<int64_t>(values.size() * sizeof(T));
    absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::Create(device(), bytes);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    if (!buffer.ok()) return DeviceBuffer();
    const absl::Status copied = CopyToDevice(stream(), values.data(), bytes, buffer->data());
    EXPECT_TRUE(copied.ok()) << copied;
    return *std::move(buffer);
  }

  /// A buffer of `count` values whose every byte is 0xff: NaN as floats, so that what no kernel
  /// wrote is seen.
  template <typename T>
  DeviceBuffer Poisoned(int64_t count) const {
    return ToDevice(std::vector<uint8_t>(count * sizeof(T), 0xff));
  }

  /// All of a buffer, after the work queued so far.
  template <typename T>
  std::vector<T> ToHost(const DeviceBuffer& buffer) const {
    std::vector<T> values(buffer.bytes() / sizeof(T));
    const absl::Status copied = CopyToHost(stream(), buffer.data(), buffer.bytes(), values.data());
    EXPECT_TRUE(copied.ok()) << copied;
    return values;
  }

 private:
  std::unique_ptr<CudaStream> stream_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_KERNELS_CUDA_CUDA_TESTING_H_
