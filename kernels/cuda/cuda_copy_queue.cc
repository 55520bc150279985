#include "kernels/cuda/cuda_copy_queue.h"

#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

#include "kernels/cuda/cuda_error.h"

namespace caravan {
namespace {

class CudaCopyQueue : public CopyQueue {
 public:
  CudaCopyQueue(const CudaStream& compute, std::unique_ptr<CudaStream> copies, cudaEvent_t reached)
      : compute_(compute), copies_(std::move(copies)), reached_(reached) {}

  ~CudaCopyQueue() override {
    // An error here was one before, and whoever waited has seen it.
    cudaStreamSynchronize(copies_->get());
    cudaEventDestroy(reached_);
    for (void* const host : pinned_) cudaHostUnregister(host);
  }

  absl::Status Pin(std::byte* host, int64_t bytes) override {
    CARAVAN_RETURN_IF_ERROR(compute_.device().MakeCurrent());
    const absl::Status status =
        CudaStatus(cudaHostRegister(host, bytes, cudaHostRegisterDefault), "cudaHostRegister");
    if (!status.ok()) return absl::UnavailableError(status.message());
    pinned_.push_back(host);
    return absl::OkStatus();
  }

  absl::Status Begin(const std::byte* host, int64_t bytes, std::byte* to) override {
    CARAVAN_RETURN_IF_ERROR(compute_.device().MakeCurrent());
    CARAVAN_CUDA_RETURN_IF_ERROR(
        cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, copies_->get()));
    return absl::OkStatus();
  }

  absl::Status Precede() override { return Order(*copies_, compute_); }
  absl::Status Follow() override { return Order(compute_, *copies_); }

  absl::Status Wait() override { return copies_->Synchronize(); }

 private:
  /// What `then` gets from now on comes after what `first` has got.
  absl::Status Order(const CudaStream& first, const CudaStream& then) {
    CARAVAN_RETURN_IF_ERROR(compute_.device().MakeCurrent());
    CARAVAN_CUDA_RETURN_IF_ERROR(cudaEventRecord(reached_, first.get()));
    CARAVAN_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(then.get(), reached_, 0));
    return absl::OkStatus();
  }

  const CudaStream& compute_;
  const std::unique_ptr<CudaStream> copies_;
  const cudaEvent_t reached_;  // whoever waits for it takes what it was then
  std::vector<void*> pinned_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CopyQueue>> MakeCudaCopyQueue(const CudaStream& compute) {
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<CudaStream> copies,
                           CudaStream::Create(compute.device()));
  cudaEvent_t reached = nullptr;
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&reached, cudaEventDisableTiming));
  return std::make_unique<CudaCopyQueue>(compute, std::move(copies), reached);
}

}  // namespace caravan
