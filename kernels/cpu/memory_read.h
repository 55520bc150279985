#ifndef CARAVAN_KERNELS_CPU_MEMORY_READ_H_
#define CARAVAN_KERNELS_CPU_MEMORY_READ_H_

// The plain read of memory: the bound of everything that touches each weight once.

#include <cstddef>
#include <cstdint>

#include "base/thread_pool.h"

namespace caravan {

/// Reads `bytes` bytes on all threads of the pool, as fast as we know how. Returns what keeps the
/// compiler from leaving it out. REQUIRES: bytes is a multiple of 64, data aligned to 8.
uint64_t ReadMemory(ThreadPool& pool, const std::byte* data, int64_t bytes);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_MEMORY_READ_H_
