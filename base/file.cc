#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/int_math.h"
#include "base/open_file.h"
#include "base/status_macros.h"

namespace caravan {
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  CARAVAN_ASSIGN_OR_RETURN(OpenFile file, OpenForReading(path));
  if (file.size > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", file.size, " bytes; at most ",
                                                   max_bytes,
                                                   " are read from a file of this kind"));
  }
  std::string bytes(static_cast<size_t>(file.size), '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::read(file.fd.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::DataLossError(ErrnoStatus(errno, path).message());
    if (n == 0) {
      return absl::DataLossError(
          absl::StrCat(path, ": short read at ", done, " of ", bytes.size(), " bytes"));
    }
    done += static_cast<size_t>(n);
  }
  return bytes;
}

bool FileExists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

std::string JoinPath(absl::string_view directory, absl::string_view name) {
  if (directory.empty()) return std::string(name);
  return absl::StrCat(directory, directory.back() == '/' ? "" : "/", name);
}

absl::StatusOr<std::unique_ptr<ReadableFile>> ReadableFile::Open(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(OpenFile file, OpenForReading(path));
  return std::unique_ptr<ReadableFile>(new ReadableFile(path, file.fd.Release(), file.size));
}

ReadableFile::~ReadableFile() { ::close(fd_); }

absl::Status ReadableFile::Read(int64_t offset, absl::Span<std::byte> out) const {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n =
        ::pread(fd_, out.data() + done, out.size() - done, offset + static_cast<int64_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::DataLossError(ErrnoStatus(errno, path_).message());
    if (n == 0) {
      return absl::DataLossError(absl::StrCat(path_, ": short read at ",
                                              offset + static_cast<int64_t>(done), ", ",
                                              out.size() - done, " bytes are missing"));
    }
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

void ReadableFile::Prefetch(int64_t offset, int64_t size) const {
  // The kernel may cut a call short at its read-ahead, 128 KiB where nobody has changed that.
  constexpr int64_t kCallBytes = int64_t{128} << 10;
  for (int64_t done = 0; done < size; done += kCallBytes) {
    ::posix_fadvise(fd_, offset + done, std::min(kCallBytes, size - done), POSIX_FADV_WILLNEED);
  }
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<ReadableFile> file, ReadableFile::Open(path));
  if (file->bytes() == 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the file is empty"));
  }
  const size_t size = static_cast<size_t>(file->bytes());
  void* const data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file->fd_, 0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, path);
  return std::unique_ptr<MappedFile>(new MappedFile(
      std::move(file), absl::MakeConstSpan(static_cast<const std::byte*>(data), size)));
}

MappedFile::~MappedFile() { ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size()); }

void MappedFile::Release(int64_t offset, int64_t size) const {
  const int64_t page = ::sysconf(_SC_PAGESIZE);
  const int64_t begin = RoundUp(offset, page);
  const int64_t end = (offset + size) / page * page;
  if (begin >= end) return;
  ::madvise(const_cast<std::byte*>(bytes_.data()) + begin, static_cast<size_t>(end - begin),
            MADV_DONTNEED);
}

}  // namespace caravan
