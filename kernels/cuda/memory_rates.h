#ifndef CARAVAN_KERNELS_CUDA_MEMORY_RATES_H_
#define CARAVAN_KERNELS_CUDA_MEMORY_RATES_H_

// How fast a card reads its memory, and how fast bytes come to it and from it: the bounds of what
// computes there.

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_stream.h"

namespace caravan {

/// Queues a plain read of `bytes` bytes (a multiple of 16); `sink`: 4 bytes that are, in effect,
/// never written. Errors: as LaunchStatus.
absl::Status ReadDeviceMemory(const CudaStream& stream, const std::byte* data, int64_t bytes,
                              std::byte* sink);

/// Bytes a second, each the median of some runs.
struct CudaMemoryRates {
  double read = 0;
  double to_card = 0;    // from page-locked memory of the host, in pieces as large as experts
  double from_card = 0;  // likewise
};

/// Takes half a second, of the host 24 MiB of page-locked memory, and of the card what is free up
/// to 2 GiB: more than its caches hold.
/// Errors: ResourceExhausted - not so much memory that the caches would not hold it; Internal - the
///         card failed.
absl::StatusOr<CudaMemoryRates> MeasureCudaMemory(const CudaDevice& device);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_MEMORY_RATES_H_
