#ifndef CARAVAN_KERNELS_CUDA_OVERLAPPED_LAUNCH_CUH_
#define CARAVAN_KERNELS_CUDA_OVERLAPPED_LAUNCH_CUH_

// Launches of kernels that may begin before the one ahead of them on the stream has ended (CUDA C++
// Programming Guide, "Programmatic Dependent Launch"; cards from 9.0 on, elsewhere a plain launch).
// Between short kernels the card would else be idle while one's last blocks leave and the next's
// first ones come.
//
// Such a kernel calls, in all threads, LetNextBegin() and, before it touches memory that another
// kernel writes or reads what it writes, WaitForEarlier() (overlap.cuh). As each waits for the one
// ahead of it, all before that have ended, too. Memory that it reads may be written while it runs:
// no __ldg, no __restrict__.
//
// For code with CUDA's headers.

#include <cuda_runtime.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/cuda_stream.h"

namespace caravan {

/// Calls launch(config) with the grid, the block, the stream, and that it may begin early.
/// `name`: the kernel's. Errors: those of LaunchStatus.
template <typename Launch>
absl::Status LaunchOverlapped(const CudaStream& stream, absl::string_view name, dim3 grid,
                              dim3 block, int64_t shared_bytes, const Launch& launch) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream.get();
  config.attrs = &early;
  config.numAttrs = stream.device().overlaps_kernels() ? 1 : 0;
  return CudaStatus(launch(config), name);
}

/// Launches kernel(arguments...).
template <typename... Parameters, typename... Arguments>
absl::Status LaunchOverlapped(const CudaStream& stream, absl::string_view name,
                              void (*kernel)(Parameters...), dim3 grid, dim3 block,
                              int64_t shared_bytes, Arguments&&... arguments) {
  return LaunchOverlapped(
      stream, name, grid, block, shared_bytes, [&](const cudaLaunchConfig_t& config) {
        return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
      });
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_OVERLAPPED_LAUNCH_CUH_
