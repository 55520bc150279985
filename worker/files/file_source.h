#ifndef CARAVAN_WORKER_FILES_FILE_SOURCE_H_
#define CARAVAN_WORKER_FILES_FILE_SOURCE_H_

// Somebody who has files of a packed model: the coordinator, or a worker.

#include <cstddef>
#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace caravan {

struct OfferedFile {
  std::string name;
  int64_t bytes = 0;
};

using FileSink = absl::FunctionRef<absl::Status(absl::Span<const std::byte>)>;

/// Thread-safe. What waits gives up soon after `stop` is requested, with Cancelled.
class FileSource {
 public:
  virtual ~FileSource() = default;

  /// What messages call it: "worker 2 (box-b)".
  virtual const std::string& name() const = 0;

  /// The files that it has whole.
  /// Errors: Unavailable, DeadlineExceeded - it does not answer; Aborted - another process does.
  virtual absl::StatusOr<std::vector<OfferedFile>> List(const std::stop_token& stop) = 0;

  /// Brings bytes [offset, offset + size) of a file to `sink`, in order, as many as the source
  /// gives now; an error of `sink` ends the read. Returns 0 when all have come; else the source is
  /// busy, and wants to be left alone for so long before it is asked for the others.
  /// Errors: as List; NotFound, OutOfRange - it has no such bytes; DataLoss - it could not read
  ///         them, or sends something else; `sink`'s.
  virtual absl::StatusOr<absl::Duration> Read(const std::string& file, int64_t offset, int64_t size,
                                              FileSink sink, const std::stop_token& stop) = 0;
};

/// As FileSource::Read, but waits as long as the source is busy. Errors: as that.
absl::Status ReadAll(FileSource& source, const std::string& file, int64_t offset, int64_t size,
                     FileSink sink, const std::stop_token& stop);

}  // namespace caravan

#endif  // CARAVAN_WORKER_FILES_FILE_SOURCE_H_
