#ifndef CARAVAN_WORKER_NCCL_NCCL_TRANSPORT_H_
#define CARAVAN_WORKER_NCCL_NCCL_TRANSPORT_H_

// CardTransport by NCCL: each link is a communicator of two ranks, of which 0 receives, and a
// stream of its own beside what the card computes.

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_device.h"
#include "worker/card_link.h"

namespace caravan {

/// Looks for NCCL, and keeps it. Errors: as NcclLibrary::Load; Internal - CUDA failed.
absl::StatusOr<std::unique_ptr<CardTransport>> OpenNcclTransport(const CudaDevice& device);

}  // namespace caravan

#endif  // CARAVAN_WORKER_NCCL_NCCL_TRANSPORT_H_
