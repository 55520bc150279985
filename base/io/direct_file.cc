#include "base/io/direct_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/open_file.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

/// Whether reads of `fd`, opened with O_DIRECT, go past the page cache.
bool ReadsPastCache(int fd) {
  // Since Linux 6.6 tmpfs takes O_DIRECT and ignores it: its files are nowhere but in the cache.
  struct statfs info;
  if (::fstatfs(fd, &info) == 0 && info.f_type == TMPFS_MAGIC) return false;
  // Others take it and refuse each read.
  alignas(kDirectAlignment) std::byte block[kDirectAlignment];
  return ::pread(fd, block, sizeof(block), 0) >= 0 || errno != EINVAL;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DirectFile>> DirectFile::Open(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(OpenFile file, OpenForReading(path));
  // It was opened with O_NONBLOCK, which must go: io_uring would then report that a read has to
  // wait (EAGAIN) instead of waiting.
  const int fd = file.fd.get();
  const bool direct = ::fcntl(fd, F_SETFL, O_DIRECT) == 0 && ReadsPastCache(fd);
  if (!direct && ::fcntl(fd, F_SETFL, 0) != 0) return ErrnoStatus(errno, path);
  return std::unique_ptr<DirectFile>(new DirectFile(path, file.fd.Release(), file.size, direct));
}

absl::StatusOr<std::unique_ptr<DirectFile>> DirectFile::CreateScratch(const std::string& directory,
                                                                      int64_t bytes) {
  std::string path = absl::StrCat(directory, "/caravan-scratch-XXXXXX");
  FileDescriptor file(::mkostemp(path.data(), O_CLOEXEC));
  if (file.get() < 0) return ErrnoStatus(errno, directory);
  ::unlink(path.c_str());
  // Before O_DIRECT, which the C library's own way of doing this does not know.
  int error = 0;
  do {
    error = ::posix_fallocate(file.get(), 0, bytes);
  } while (error == EINTR);
  if (error != 0) {
    return Annotate(ErrnoStatus(error, directory), absl::StrCat("a file of ", bytes, " bytes"));
  }
  const bool direct = ::fcntl(file.get(), F_SETFL, O_DIRECT) == 0 && ReadsPastCache(file.get());
  if (!direct && ::fcntl(file.get(), F_SETFL, 0) != 0) return ErrnoStatus(errno, directory);
  return std::unique_ptr<DirectFile>(
      new DirectFile(absl::StrCat("a scratch file in ", directory), file.Release(), bytes, direct));
}

absl::Status DirectFile::Write(int64_t offset, absl::Span<const std::byte> data) const {
  while (!data.empty()) {
    const ssize_t written = ::pwrite(fd_, data.data(), data.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      return Annotate(ErrnoStatus(written < 0 ? errno : ENOSPC, path_),
                      absl::StrCat("writing at ", offset));
    }
    data.remove_prefix(static_cast<size_t>(written));
    offset += written;
  }
  return absl::OkStatus();
}

DirectFile::DirectFile(std::string path, int fd, int64_t bytes, bool direct)
    : path_(std::move(path)), fd_(fd), bytes_(bytes), direct_(direct) {}

DirectFile::~DirectFile() { ::close(fd_); }

}  // namespace caravan
