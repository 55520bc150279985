#ifndef CARAVAN_TESTS_KERNELS_CUDA_HOST_MEMORY_BACKEND_H_
#define CARAVAN_TESTS_KERNELS_CUDA_HOST_MEMORY_BACKEND_H_

// A backend in device memory behind the contract of one in host memory, so that the same tests hold
// both: every call copies its inputs to the device, runs, and copies the outputs back. Weights that
// are multiplied are brought into tiles on the way. What an operation does not write stays NaN, and
// a write before or behind a buffer fails the test. Broken calls of CUDA fail the test too.

#include <memory>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_stream.h"

namespace caravan {

/// `stream` outlives the backend. arena_bytes: room for all that a call takes.
std::unique_ptr<Backend> MakeHostMemoryBackend(const CudaStream& stream,
                                               std::unique_ptr<CudaBackend> backend,
                                               int64_t arena_bytes);

}  // namespace caravan

#endif  // CARAVAN_TESTS_KERNELS_CUDA_HOST_MEMORY_BACKEND_H_
