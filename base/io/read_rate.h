#ifndef CARAVAN_BASE_IO_READ_RATE_H_
#define CARAVAN_BASE_IO_READ_RATE_H_

// How fast a ReadQueue reads from random places of a file: what `caravan probe disk` and
// bench/read_bench measure.

#include <cstddef>
#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/io/direct_file.h"
#include "base/io/read_queue.h"

namespace caravan {

struct ReadLoad {
  int64_t read_bytes = 0;    // of each read, a multiple of kDirectAlignment
  ReadQueue::Options queue;  // but for its memory
  absl::Duration duration = absl::Seconds(1);
};

struct ReadRate {
  double gb_per_s = 0;
  std::string engine;  // ReadQueue::Name
};

/// Loads of pieces of each size with each number of them under way, in that order. read_bytes: of
/// the reads that they are pieces of; 0: each read is one.
std::vector<ReadLoad> ReadLoads(absl::Span<const int64_t> piece_bytes, absl::Span<const int> depths,
                                absl::Duration duration, int64_t read_bytes = 0);

/// The memory that the load's reads go to: as many reads as fill the queue, and one that waits.
int64_t MemoryOf(const ReadLoad& load);
/// Of the load that needs most.
int64_t MemoryOf(absl::Span<const ReadLoad> loads);

/// Reads for `load.duration`, after as many reads as are there at once; at least one counts.
/// Errors: Cancelled - stopped; what the reads end with.
/// REQUIRES: `memory` has MemoryOf(load) bytes and is aligned; the file has load.read_bytes.
absl::StatusOr<ReadRate> MeasureReadRate(const DirectFile& file, const ReadLoad& load,
                                         absl::Span<std::byte> memory, std::stop_token stop);

}  // namespace caravan

#endif  // CARAVAN_BASE_IO_READ_RATE_H_
