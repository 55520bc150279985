#ifndef CARAVAN_BASE_FILE_H_
#define CARAVAN_BASE_FILE_H_

// Files: whole, in parts, or mapped.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace caravan {

/// The file's bytes.
/// Errors: NotFound - no such file; InvalidArgument - a directory, or larger than `max_bytes`;
///         PermissionDenied; DataLoss - the disk failed. Each names the path.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes);

bool FileExists(const std::string& path);

/// `directory`/`name`.
std::string JoinPath(absl::string_view directory, absl::string_view name);

/// A file open for reading at any place, without a mapping. Thread-safe.
class ReadableFile {
 public:
  /// Errors: as ReadFile.
  static absl::StatusOr<std::unique_ptr<ReadableFile>> Open(const std::string& path);
  ~ReadableFile();
  ReadableFile(const ReadableFile&) = delete;
  ReadableFile& operator=(const ReadableFile&) = delete;

  const std::string& path() const { return path_; }
  /// Its size when it was opened.
  int64_t bytes() const { return bytes_; }

  /// Reads `out.size()` bytes from `offset` on.
  /// Errors: DataLoss - the disk failed, or the file ends before; names the path.
  absl::Status Read(int64_t offset, absl::Span<std::byte> out) const;

  /// Lets the kernel begin to read [offset, offset + size), which will be read soon.
  void Prefetch(int64_t offset, int64_t size) const;

 private:
  friend class MappedFile;

  ReadableFile(std::string path, int fd, int64_t bytes)
      : path_(std::move(path)), fd_(fd), bytes_(bytes) {}

  const std::string path_;
  const int fd_;
  const int64_t bytes_;
};

/// A file mapped for reading. Immutable, so thread-safe. The file must not be truncated meanwhile:
/// touching what is gone raises SIGBUS.
class MappedFile {
 public:
  /// Errors: as ReadFile; also InvalidArgument - an empty file.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return file_->path(); }
  absl::Span<const std::byte> bytes() const { return bytes_; }

  /// Lets the kernel drop the pages that lie wholly within [offset, offset + size): they no longer
  /// count as this process's memory, and are read again when touched.
  void Release(int64_t offset, int64_t size) const;

  /// The same file without its mapping.
  const ReadableFile& file() const { return *file_; }

 private:
  MappedFile(std::unique_ptr<ReadableFile> file, absl::Span<const std::byte> bytes)
      : file_(std::move(file)), bytes_(bytes) {}

  const std::unique_ptr<ReadableFile> file_;
  const absl::Span<const std::byte> bytes_;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_FILE_H_
