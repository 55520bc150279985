#ifndef CARAVAN_KERNELS_CUDA_CUDA_BACKEND_H_
#define CARAVAN_KERNELS_CUDA_CUDA_BACKEND_H_

// Backend on a CUDA device. The contract is kernels/backend.h's, with memory in another place:
// every float*, Matrix::data and scale_inv, RopeTable::inv_freq, the ids (of Embed and of Route's
// and RoutedExperts' choices), the blocks of the cache, questions and summaries of logits are
// device memory. Spans of sequences, and the lists of blocks within them, are host memory and may
// go when a call returns.
//
// Operations are queued on the stream and their results are there when it comes to them: whoever
// wants them on the host synchronizes or copies in the stream's order. A batch of experts may be
// asked for (ExpertBatches::Next) before the one before it was computed with: who gives them uses
// their memory anew in the stream's order, or waits.
//
// Matrices that are multiplied lie in tiles (MatrixLayout::kTiled16), those of single values (F32,
// F16, BF16, F8_E4M3) too; tables and kv_b in either layout. All memory is taken at creation.
//
// An operation that could not be queued makes the backend useless: the first such error stays, what
// is asked for later is not done, and status() tells it.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_scratch.h"
#include "kernels/cuda/cuda_stream.h"

namespace caravan {

/// Whether the kernels have room for a model of these sizes.
/// Errors: InvalidArgument - names the size, and the largest that they have room for.
absl::Status CheckCudaSizes(const MlaShape& mla, const RouterShape& router, int64_t vocab_size);

class CudaBackend : public Backend {
 public:
  /// `stream` outlives the object.
  /// Errors: ResourceExhausted - not so much memory is free on the device.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Create(const CudaStream& stream,
                                                             const CudaBackendLimits& limits);
  /// With a stream of its own; scratch and memory() take budget_bytes at most.
  /// Errors: the same; ResourceExhausted - the scratch takes more than the budget.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Open(const CudaDevice& device,
                                                           const CudaBackendLimits& limits,
                                                           int64_t budget_bytes);

  /// The first error of an operation so far. What goes wrong while kernels run is told by
  /// CudaStream::Synchronize.
  virtual absl::Status status() const = 0;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_CUDA_BACKEND_H_
