#ifndef CARAVAN_BASE_PEAK_MEMORY_H_
#define CARAVAN_BASE_PEAK_MEMORY_H_

// What the kernel counts of a process's memory (proc_pid_status(5)).

#include <sys/types.h>

#include <cstdint>

#include "absl/strings/string_view.h"

namespace caravan {

/// Of a process, in bytes; -1: not known. counter: as the kernel calls it, such as "VmPin".
int64_t ProcessMemory(pid_t pid, absl::string_view counter);

/// The most resident memory that a process had, in bytes; -1: not known.
int64_t PeakMemory(pid_t pid);

}  // namespace caravan

#endif  // CARAVAN_BASE_PEAK_MEMORY_H_
