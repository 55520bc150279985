#ifndef CARAVAN_KERNELS_CUDA_CUDA_STREAM_H_
#define CARAVAN_KERNELS_CUDA_CUDA_STREAM_H_

// A queue of work on one device, done in order. Used by one thread at a time.

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_device.h"

// What CUDA calls cudaStream_t points to one of these.
struct CUstream_st;

namespace caravan {

class CudaStream {
 public:
  /// Errors: Internal.
  static absl::StatusOr<std::unique_ptr<CudaStream>> Create(const CudaDevice& device);
  /// Waits for the queue.
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  const CudaDevice& device() const { return device_; }
  /// For launches: <<<grid, block, shared, stream.get()>>>.
  CUstream_st* get() const { return stream_; }

  /// Waits until all queued work is done.
  /// Errors: Internal - some of it failed (an illegal address, say); the process's use of the
  /// device
  ///         is then over.
  absl::Status Synchronize() const;

 private:
  CudaStream(const CudaDevice& device, CUstream_st* stream) : device_(device), stream_(stream) {}

  const CudaDevice device_;
  CUstream_st* const stream_;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_CUDA_STREAM_H_
