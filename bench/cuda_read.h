#ifndef CARAVAN_BENCH_CUDA_READ_H_
#define CARAVAN_BENCH_CUDA_READ_H_

// What cuda_bench needs besides the backend: memory filled with random bits, and a plain read of
// it, the bound of everything that touches each weight once.

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/cuda_stream.h"

namespace caravan {

/// Queues random bits into `bytes` bytes (a multiple of 4), bit 6 of each byte 0: no value of any
/// format is infinite or not a number then.
void FillRandomly(const CudaStream& stream, std::byte* data, int64_t bytes);

/// Queues a read of `bytes` bytes (a multiple of 16); `sink`: 4 bytes that are, in effect, never
/// written.
void ReadBytes(const CudaStream& stream, const std::byte* data, int64_t bytes, std::byte* sink);

}  // namespace caravan

#endif  // CARAVAN_BENCH_CUDA_READ_H_
