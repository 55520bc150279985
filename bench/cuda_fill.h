#ifndef CARAVAN_BENCH_CUDA_FILL_H_
#define CARAVAN_BENCH_CUDA_FILL_H_

// What cuda_bench needs besides the backend: memory filled with random bits.

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/cuda_stream.h"

namespace caravan {

/// Queues random bits into `bytes` bytes (a multiple of 4), bit 6 of each byte 0: no value of any
/// format is infinite or not a number then.
void FillRandomly(const CudaStream& stream, std::byte* data, int64_t bytes);

}  // namespace caravan

#endif  // CARAVAN_BENCH_CUDA_FILL_H_
