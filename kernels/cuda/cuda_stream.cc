#include "kernels/cuda/cuda_stream.h"

#include <cuda_runtime_api.h>

#include "absl/memory/memory.h"
#include "kernels/cuda/cuda_error.h"

namespace caravan {

absl::StatusOr<std::unique_ptr<CudaStream>> CudaStream::Create(const CudaDevice& device) {
  CARAVAN_RETURN_IF_ERROR(device.MakeCurrent());
  cudaStream_t stream = nullptr;
  // Not ordered with the default stream, which nothing here uses.
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return absl::WrapUnique(new CudaStream(device, stream));
}

CudaStream::~CudaStream() {
  // An error here was one before, and whoever synchronized has seen it.
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

absl::Status CudaStream::Synchronize() const {
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream_));
  return absl::OkStatus();
}

}  // namespace caravan
