#ifndef CARAVAN_BASE_DIRECTORY_LOCK_H_
#define CARAVAN_BASE_DIRECTORY_LOCK_H_

// Keeps a directory one process's: two would each fill it, and remove what the other counts on.

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/open_file.h"

namespace caravan {

/// A locked file in the directory (flock), which stays there: the system opens the lock when the
/// process ends, however it does. Movable.
class DirectoryLock {
 public:
  /// Makes the directory if it is not there, and locks the file `name` in it; whoever keeps
  /// something else there takes another name.
  /// Errors: FailedPrecondition - somebody has it locked; InvalidArgument - the directory or the
  ///         file cannot be made, or the file system locks nothing. Each names what it is about.
  static absl::StatusOr<DirectoryLock> Take(const std::string& directory, absl::string_view name);

 private:
  explicit DirectoryLock(FileDescriptor file) : file_(std::move(file)) {}

  FileDescriptor file_;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_DIRECTORY_LOCK_H_
