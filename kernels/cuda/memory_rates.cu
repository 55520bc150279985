#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/memory_rates.h"

namespace caravan {
namespace {

constexpr int kThreads = 512;
constexpr int kUnroll = 8;

constexpr int64_t kMostReadBytes = int64_t{2} << 30;
// Of the second-level cache: of so much more it holds a small part.
constexpr int64_t kLeastCaches = 4;
// An expert of R1 at 4.5 bits a weight.
constexpr int64_t kCopyBytes = int64_t{24} << 20;
constexpr int kRuns = 21;

/// Each block reads runs of 64 KiB; a thread has eight loads of 16 bytes in flight.
__global__ void __launch_bounds__(kThreads)
    ReadKernel(const uint4* words, int64_t count, uint32_t* sink) {
  uint32_t sum = 0;
  for (int64_t run = int64_t{blockIdx.x} * kThreads * kUnroll; run < count;
       run += int64_t{gridDim.x} * kThreads * kUnroll) {
    uint4 read[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = run + u * kThreads + threadIdx.x;
      read[u] = i < count ? __ldcs(words + i) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum += read[u].x ^ read[u].y ^ read[u].z ^ read[u].w;
  }
  if (sum == 0x12345678u) *sink = sum;
}

/// The card's clock, at a place in a stream.
class Event {
 public:
  static absl::StatusOr<Event> Create() {
    Event event;
    CARAVAN_CUDA_RETURN_IF_ERROR(cudaEventCreate(&event.event_));
    return event;
  }
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&&) = delete;

  cudaEvent_t get() const { return event_; }

 private:
  Event() = default;

  cudaEvent_t event_ = nullptr;
};

/// Of the host, page-locked.
class PinnedBuffer {
 public:
  static absl::StatusOr<PinnedBuffer> Create(int64_t bytes) {
    PinnedBuffer buffer;
    CARAVAN_CUDA_RETURN_IF_ERROR(cudaMallocHost(&buffer.data_, static_cast<size_t>(bytes)));
    return buffer;
  }
  ~PinnedBuffer() {
    if (data_ != nullptr) cudaFreeHost(data_);
  }
  PinnedBuffer(PinnedBuffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  PinnedBuffer& operator=(PinnedBuffer&&) = delete;

  void* data() const { return data_; }

 private:
  PinnedBuffer() = default;

  void* data_ = nullptr;
};

/// Bytes a second of what `queue` does with `bytes` bytes: the median of its runs but the first.
template <typename Queue>
absl::StatusOr<double> Rate(const CudaStream& stream, int64_t bytes, Queue queue) {
  CARAVAN_ASSIGN_OR_RETURN(const Event begin, Event::Create());
  CARAVAN_ASSIGN_OR_RETURN(const Event end, Event::Create());
  CARAVAN_RETURN_IF_ERROR(queue());
  std::vector<float> ms(kRuns);
  for (float& run : ms) {
    CARAVAN_CUDA_RETURN_IF_ERROR(cudaEventRecord(begin.get(), stream.get()));
    CARAVAN_RETURN_IF_ERROR(queue());
    CARAVAN_CUDA_RETURN_IF_ERROR(cudaEventRecord(end.get(), stream.get()));
    CARAVAN_RETURN_IF_ERROR(stream.Synchronize());
    CARAVAN_CUDA_RETURN_IF_ERROR(cudaEventElapsedTime(&run, begin.get(), end.get()));
  }
  std::nth_element(ms.begin(), ms.begin() + kRuns / 2, ms.end());
  return 1e3 * static_cast<double>(bytes) / static_cast<double>(ms[kRuns / 2]);
}

}  // namespace

absl::Status ReadDeviceMemory(const CudaStream& stream, const std::byte* data, int64_t bytes,
                              std::byte* sink) {
  const int64_t runs = (bytes / 16 + kThreads * kUnroll - 1) / (kThreads * kUnroll);
  const int64_t most = int64_t{stream.device().num_multiprocessors()} * 16;
  ReadKernel<<<static_cast<unsigned>(std::min(runs, most)), kThreads, 0, stream.get()>>>(
      reinterpret_cast<const uint4*>(data), bytes / 16, reinterpret_cast<uint32_t*>(sink));
  return LaunchStatus("ReadKernel");
}

absl::StatusOr<CudaMemoryRates> MeasureCudaMemory(const CudaDevice& device) {
  CARAVAN_RETURN_IF_ERROR(device.MakeCurrent());
  CARAVAN_ASSIGN_OR_RETURN(const CudaMemoryInfo memory, device.Memory());
  const int64_t bytes = std::min(kMostReadBytes, memory.free_bytes / 4 * 3) / 256 * 256;
  const int64_t least = std::max(kLeastCaches * device.l2_bytes(), kCopyBytes);
  if (bytes < least) {
    return absl::ResourceExhaustedError(
        absl::StrCat(device.Title(), " has ", FormatByteSize(memory.free_bytes),
                     " free: too little to measure how fast it is read"));
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<CudaStream> stream, CudaStream::Create(device));
  CARAVAN_ASSIGN_OR_RETURN(const DeviceBuffer buffer, DeviceBuffer::Create(device, bytes));
  CARAVAN_ASSIGN_OR_RETURN(const DeviceBuffer sink, DeviceBuffer::Create(device, 256));
  CARAVAN_ASSIGN_OR_RETURN(const PinnedBuffer host, PinnedBuffer::Create(kCopyBytes));
  CARAVAN_CUDA_RETURN_IF_ERROR(
      cudaMemsetAsync(buffer.data(), 0x5a, static_cast<size_t>(bytes), stream->get()));
  CudaMemoryRates rates;
  CARAVAN_ASSIGN_OR_RETURN(rates.read, Rate(*stream, bytes, [&] {
                             return ReadDeviceMemory(*stream, buffer.data(), bytes, sink.data());
                           }));
  CARAVAN_ASSIGN_OR_RETURN(
      rates.to_card, Rate(*stream, kCopyBytes, [&]() -> absl::Status {
        CARAVAN_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(buffer.data(), host.data(), kCopyBytes,
                                                     cudaMemcpyHostToDevice, stream->get()));
        return absl::OkStatus();
      }));
  CARAVAN_ASSIGN_OR_RETURN(
      rates.from_card, Rate(*stream, kCopyBytes, [&]() -> absl::Status {
        CARAVAN_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(host.data(), buffer.data(), kCopyBytes,
                                                     cudaMemcpyDeviceToHost, stream->get()));
        return absl::OkStatus();
      }));
  return rates;
}

}  // namespace caravan
