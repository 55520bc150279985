#include "base/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace caravan {

absl::Status ErrnoStatus(int error, absl::string_view path) {
  // absl's message carries strerror's text. A path that leads through a file names no file either.
  if (error == ENOTDIR) error = ENOENT;
  return absl::ErrnoToStatus(error, path);
}

absl::StatusOr<OpenFile> OpenForReading(const std::string& path) {
  // O_NONBLOCK: opening a pipe would otherwise wait for its writer before it can be refused.
  FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return ErrnoStatus(errno, path);
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  return OpenFile{std::move(fd), info.st_size};
}

}  // namespace caravan
