#ifndef CARAVAN_CLI_DISK_PROBE_H_
#define CARAVAN_CLI_DISK_PROBE_H_

// What reads of several sizes get from a disk, by how many are under way: caravan probe disk.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/io/direct_file.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// A smaller file is read again and again, and lies in the caches of disks and hypervisors.
inline constexpr int64_t kLeastProbeBytes = int64_t{64} << 20;

/// A file of random bytes on the disk of `directory`, without a name: when it is closed, in
/// whichever way the process ends, it is gone.
/// Errors: NotFound - no directory; InvalidArgument - no file can be made in it; OutOfRange - the
/// disk has no room for it; DataLoss - the disk failed; Cancelled - stopped. Each but the last
/// names the directory.
absl::StatusOr<std::unique_ptr<DirectFile>> MakeScratchFile(const std::string& directory,
                                                            int64_t bytes, std::stop_token stop);

struct DiskProbe {
  struct Point {
    int64_t read_bytes = 0;
    int depth = 0;  // reads under way
    double gb_per_s = 0;
  };
  int64_t file_bytes = 0;
  bool direct = false;
  std::string engine;         // ReadQueue::Name
  std::vector<Point> points;  // by size, then by depth
  size_t best = 0;            // of points
};

/// Reads of 1 to 24 MiB, from random places, 1 to 32 at once, for `duration` each.
/// Errors: InvalidArgument - the file has fewer than kLeastProbeBytes; DataLoss - the disk failed;
/// Cancelled - stopped.
absl::StatusOr<DiskProbe> ProbeDisk(const DirectFile& file, absl::Duration duration,
                                    std::stop_token stop);

/// A line a size, a column a depth, the best marked.
std::string DiskProbeTable(const DiskProbe& probe);
nlohmann::json DiskProbeJson(const DiskProbe& probe);

}  // namespace caravan

#endif  // CARAVAN_CLI_DISK_PROBE_H_
