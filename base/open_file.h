#ifndef CARAVAN_BASE_OPEN_FILE_H_
#define CARAVAN_BASE_OPEN_FILE_H_

// How a file is opened for reading, for the classes that read files.

#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// Closes on destruction. Movable.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&&) = delete;
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

struct OpenFile {
  FileDescriptor fd;
  int64_t size;  // in bytes, when it was opened
};

/// A regular file.
/// Errors: NotFound; PermissionDenied; InvalidArgument - something else. Each names the path.
absl::StatusOr<OpenFile> OpenForReading(const std::string& path);

/// errno's meaning and the path.
absl::Status ErrnoStatus(int error, absl::string_view path);

}  // namespace caravan

#endif  // CARAVAN_BASE_OPEN_FILE_H_
