#ifndef CARAVAN_BASE_IO_DIRECT_FILE_H_
#define CARAVAN_BASE_IO_DIRECT_FILE_H_

// A file that is read, and a scratch file that is written too, past the page cache.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace caravan {

/// What O_DIRECT asks for: offsets, sizes and addresses are multiples of it.
inline constexpr int64_t kDirectAlignment = 4096;

/// Open as long as it lives. Thread-safe.
class DirectFile {
 public:
  /// Where the file system knows no O_DIRECT (tmpfs), the file is read through the cache.
  /// Errors: as ReadableFile::Open.
  static absl::StatusOr<std::unique_ptr<DirectFile>> Open(const std::string& path);

  /// A file without a name on the disk of `directory`, of so many bytes, for which there is room
  /// from now on. It goes with this object, or with the process.
  /// Errors: ResourceExhausted - the disk lacks room; NotFound, PermissionDenied,
  ///         FailedPrecondition - `directory` takes no file. Each names it.
  static absl::StatusOr<std::unique_ptr<DirectFile>> CreateScratch(const std::string& directory,
                                                                   int64_t bytes);

  /// Writes a scratch file at `offset`. REQUIRES: offset, size and address of `data` are multiples
  /// of kDirectAlignment, and its end lies within the file.
  /// Errors: the system's, with the path and the offset.
  absl::Status Write(int64_t offset, absl::Span<const std::byte> data) const;
  ~DirectFile();
  DirectFile(const DirectFile&) = delete;
  DirectFile& operator=(const DirectFile&) = delete;

  /// For people: the path; of a scratch file, where it is.
  const std::string& path() const { return path_; }
  int fd() const { return fd_; }
  /// Its size when it was opened.
  int64_t bytes() const { return bytes_; }
  /// Whether reads go past the page cache.
  bool direct() const { return direct_; }

 private:
  DirectFile(std::string path, int fd, int64_t bytes, bool direct);

  const std::string path_;
  const int fd_;
  const int64_t bytes_;
  const bool direct_;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_IO_DIRECT_FILE_H_
