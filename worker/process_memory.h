#ifndef CARAVAN_WORKER_PROCESS_MEMORY_H_
#define CARAVAN_WORKER_PROCESS_MEMORY_H_

// What a worker's process takes of memory whatever its stage is.

#include <cstdint>

#include "kernels/cpu/cpu_scratch.h"

namespace caravan {

/// Code and libraries, gRPC's buffers, and what the allocator keeps (docs/architecture.md, "Memory
/// of a worker", says what was measured).
inline constexpr int64_t kProcessBytes = int64_t{48} << 20;

/// With so many threads of the kernels. What depends on the model is StepMemory
/// (model/step_memory.h).
inline int64_t ProcessBytes(int num_threads) {
  return kProcessBytes + num_threads * kCpuScratchBytesPerThread;
}

}  // namespace caravan

#endif  // CARAVAN_WORKER_PROCESS_MEMORY_H_
