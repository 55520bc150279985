#ifndef CARAVAN_CLUSTER_MACHINE_H_
#define CARAVAN_CLUSTER_MACHINE_H_

// What this process may use of the machine it runs on.

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace caravan {

struct Machine {
  std::string host_name;
  std::string boot_id;       // drawn by the kernel when it starts; empty: unknown
  int num_cores = 0;         // that may run this process: CPU affinity and cgroup quota count
  int64_t memory_bytes = 0;  // of the machine, or of the tightest cgroup above this process
  int64_t available_memory_bytes = 0;  // of those, without pushing anything out
};

/// What a worker takes of the memory unless it is told otherwise: the rest of what is available is
/// left to the system and to buffers.
int64_t DefaultWorkerMemory(const Machine& machine);

/// Reads /proc and /sys/fs/cgroup (v1 and v2) under `root`, which tests put elsewhere.
/// Errors: Unavailable - /proc/meminfo cannot be read or understood.
absl::StatusOr<Machine> ProbeMachine(const std::string& root = "/");

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_MACHINE_H_
