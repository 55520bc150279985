#ifndef CARAVAN_KERNELS_CUDA_CUDA_MEMORY_H_
#define CARAVAN_KERNELS_CUDA_CUDA_MEMORY_H_

// A card's memory for the arrays and weights of one backend, within a budget. Copies go through the
// backend's stream, in its order.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/memory.h"

namespace caravan {

class CudaMemory : public Memory {
 public:
  /// budget_bytes: what all arrays may have together. check: the backend's first error, which comes
  /// with what is copied out. `stream` outlives the object.
  CudaMemory(const CudaStream& stream, int64_t budget_bytes, std::function<absl::Status()> check)
      : stream_(stream), budget_bytes_(budget_bytes), check_(std::move(check)) {}

  bool is_host() const override { return false; }
  int64_t taken_bytes() const override { return *taken_bytes_; }
  absl::StatusOr<Array> Allocate(int64_t bytes, Use use) override;
  absl::Status CopyIn(const void* host, int64_t bytes, void* to) override;
  absl::Status CopyOut(const void* from, int64_t bytes, void* host) override;
  absl::Status Copy(const void* from, int64_t bytes, void* to) override;
  absl::Status Clear(void* to, int64_t bytes) override;
  absl::StatusOr<std::unique_ptr<CopyQueue>> MakeCopyQueue() override;

 private:
  const CudaStream& stream_;
  const int64_t budget_bytes_;
  const std::function<absl::Status()> check_;
  // Of the arrays that there are; theirs too.
  const std::shared_ptr<std::atomic<int64_t>> taken_bytes_ =
      std::make_shared<std::atomic<int64_t>>(0);
  Mutex mu_;  // held while the stream gets work from Allocate and CopyIn
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_CUDA_MEMORY_H_
