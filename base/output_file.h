#ifndef CARAVAN_BASE_OUTPUT_FILE_H_
#define CARAVAN_BASE_OUTPUT_FILE_H_

// A file that is there whole or not at all: written beside its place, then renamed. What is no
// regular file (a pipe, a device) is written to as it is.

#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// Used by one thread. Without Commit nothing is left behind.
class OutputFile {
 public:
  /// Writes into `path`.PID.new until Commit.
  /// Errors: InvalidArgument - it cannot be made, or `path` is a directory; ResourceExhausted - the
  ///         disk is full. Each names `path`.
  static absl::StatusOr<std::unique_ptr<OutputFile>> Create(const std::string& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Errors: ResourceExhausted - the disk is full; DataLoss - it failed. Each names the path.
  absl::Status Write(absl::string_view bytes);

  /// Puts the file in its place, over what was there. The last call.
  /// Errors: as Write.
  absl::Status Commit();

 private:
  OutputFile(std::string path, std::string scratch, std::FILE* file)
      : path_(std::move(path)), scratch_(std::move(scratch)), file_(file) {}
  absl::Status Failed() const;

  const std::string path_;
  const std::string scratch_;  // empty: it writes in place
  std::FILE* file_;            // nullptr after Commit
};

}  // namespace caravan

#endif  // CARAVAN_BASE_OUTPUT_FILE_H_
