#ifndef CARAVAN_KERNELS_CUDA_CUDA_COPY_QUEUE_H_
#define CARAVAN_KERNELS_CUDA_CUDA_COPY_QUEUE_H_

// CopyQueue on a stream of its own, so that a card's copy engine works beside its multiprocessors.

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/copy_queue.h"
#include "kernels/cuda/cuda_stream.h"

namespace caravan {

/// compute: the backend's stream, which outlives the queue. Errors: Internal.
absl::StatusOr<std::unique_ptr<CopyQueue>> MakeCudaCopyQueue(const CudaStream& compute);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_CUDA_COPY_QUEUE_H_
