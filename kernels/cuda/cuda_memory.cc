#include "kernels/cuda/cuda_memory.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_copy_queue.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/device_buffer.h"

namespace caravan {
namespace {

/// Gives its bytes back to the budget.
class Budgeted {
 public:
  Budgeted(DeviceBuffer buffer, std::shared_ptr<std::atomic<int64_t>> taken_bytes)
      : buffer_(std::move(buffer)), taken_bytes_(std::move(taken_bytes)) {
    *taken_bytes_ += buffer_.bytes();
  }
  ~Budgeted() {
    if (taken_bytes_ != nullptr) *taken_bytes_ -= buffer_.bytes();
  }
  Budgeted(Budgeted&&) = default;

 private:
  DeviceBuffer buffer_;
  std::shared_ptr<std::atomic<int64_t>> taken_bytes_;  // null: moved from
};

}  // namespace

absl::StatusOr<Array> CudaMemory::Allocate(int64_t bytes, Use) {
  MutexLock lock(&mu_);
  const int64_t taken = *taken_bytes_;
  if (bytes > budget_bytes_ - taken) {
    return absl::ResourceExhaustedError(
        absl::StrCat(FormatByteSize(bytes), " do not fit the budget of ",
                     FormatByteSize(budget_bytes_), " on cuda:", stream_.device().ordinal(),
                     ", of which ", FormatByteSize(taken), " are taken"));
  }
  CARAVAN_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Create(stream_.device(), bytes));
  std::byte* const data = buffer.data();
  Array array(Budgeted(std::move(buffer), taken_bytes_), data, bytes);
  CARAVAN_RETURN_IF_ERROR(Clear(data, bytes));
  return array;
}

absl::Status CudaMemory::CopyIn(const void* host, int64_t bytes, void* to) {
  MutexLock lock(&mu_);
  CARAVAN_RETURN_IF_ERROR(stream_.device().MakeCurrent());
  return CopyToDevice(stream_, host, bytes, to);
}

absl::Status CudaMemory::CopyOut(const void* from, int64_t bytes, void* host) {
  CARAVAN_RETURN_IF_ERROR(check_());
  CARAVAN_RETURN_IF_ERROR(stream_.device().MakeCurrent());
  return CopyToHost(stream_, from, bytes, host);
}

absl::Status CudaMemory::Copy(const void* from, int64_t bytes, void* to) {
  CARAVAN_RETURN_IF_ERROR(stream_.device().MakeCurrent());
  CARAVAN_CUDA_RETURN_IF_ERROR(
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_.get()));
  return absl::OkStatus();
}

absl::Status CudaMemory::Clear(void* to, int64_t bytes) {
  if (bytes == 0) return absl::OkStatus();
  CARAVAN_RETURN_IF_ERROR(stream_.device().MakeCurrent());
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaMemsetAsync(to, 0, bytes, stream_.get()));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CopyQueue>> CudaMemory::MakeCopyQueue() {
  return MakeCudaCopyQueue(stream_);
}

}  // namespace caravan
