#ifndef CARAVAN_BASE_PEAK_MEMORY_H_
#define CARAVAN_BASE_PEAK_MEMORY_H_

#include <sys/types.h>

#include <cstdint>

namespace caravan {

/// The most resident memory that a process had, in bytes; -1: not known.
int64_t PeakMemory(pid_t pid);

}  // namespace caravan

#endif  // CARAVAN_BASE_PEAK_MEMORY_H_
