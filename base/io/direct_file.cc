#include "base/io/direct_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <utility>

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

DirectFile::DirectFile(std::string path, int fd, int64_t bytes, bool direct)
    : path_(std::move(path)), fd_(fd), bytes_(bytes), direct_(direct) {}

DirectFile::~DirectFile() { ::close(fd_); }

}  // namespace caravan
