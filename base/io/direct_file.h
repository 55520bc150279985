#ifndef CARAVAN_BASE_IO_DIRECT_FILE_H_
#define CARAVAN_BASE_IO_DIRECT_FILE_H_

// A file that is read past the page cache.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace caravan {

/// What O_DIRECT asks for: offsets, sizes and addresses are multiples of it.
inline constexpr int64_t kDirectAlignment = 4096;

/// Open as long as it lives. Immutable, so thread-safe.
class DirectFile {
 public:
  /// Where the file system knows no O_DIRECT (tmpfs), the file is read through the cache.
  /// Errors: as ReadableFile::Open.
  static absl::StatusOr<std::unique_ptr<DirectFile>> Open(const std::string& path);
  ~DirectFile();
  DirectFile(const DirectFile&) = delete;
  DirectFile& operator=(const DirectFile&) = delete;

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
