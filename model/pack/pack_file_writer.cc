#include "model/pack/pack_file_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/int_math.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// Of each of the two buffers.
constexpr int64_t kBufferBytes = int64_t{8} << 20;

// What O_DIRECT asks of places, sizes and memory on most disks. Where one asks for more, it is done
// without.
constexpr int64_t kBlockBytes = 4096;

std::string PartialPath(const std::string& path) { return absl::StrCat(path, ".partial"); }

absl::Status WriteError(int error, const std::string& path) {
  const absl::Status status = absl::ErrnoToStatus(error, path);
  if (error == ENOSPC || error == EDQUOT) return absl::ResourceExhaustedError(status.message());
  return absl::DataLossError(status.message());
}

/// For disks of larger blocks, file systems that promised too much in open, and what follows a
/// short write. False: writes were not direct.
bool StopDirectWrites(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && (flags & O_DIRECT) != 0 && ::fcntl(fd, F_SETFL, flags & ~O_DIRECT) == 0;
}

/// A rename is on the disk once its directory is.
absl::Status SyncDirectoryOf(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  const std::string directory = parent.empty() ? std::string(".") : parent.string();
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return WriteError(errno, directory);
  const int synced = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  return synced == 0 ? absl::OkStatus() : WriteError(error, directory);
}

}  // namespace

absl::StatusOr<std::unique_ptr<PackFileWriter>> PackFileWriter::Create(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("a file without a name cannot be written");
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is a directory, not a file"));
  }
  const std::string partial = PartialPath(path);
  CARAVAN_ASSIGN_OR_RETURN(Buffer filling, Buffer::Allocate(kBufferBytes));
  CARAVAN_ASSIGN_OR_RETURN(Buffer leaving, Buffer::Allocate(kBufferBytes));
  filling.PreferLargePages();
  leaving.PreferLargePages();
  constexpr int kFlags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC;
  bool direct = true;
  int fd = ::open(partial.c_str(), kFlags | O_DIRECT, 0666);
  if (fd < 0 && errno == EINVAL) {  // a file system that has no such thing
    direct = false;
    fd = ::open(partial.c_str(), kFlags, 0666);
  }
  if (fd < 0) {
    if (errno == ENOSPC || errno == EDQUOT) return WriteError(errno, partial);
    return absl::InvalidArgumentError(absl::ErrnoToStatus(errno, partial).message());
  }
  return std::unique_ptr<PackFileWriter>(
      new PackFileWriter(path, fd, direct, std::move(filling), std::move(leaving)));
}

void PackFileWriter::RemovePartial(const std::string& path) { ::unlink(PartialPath(path).c_str()); }

PackFileWriter::~PackFileWriter() {
  writing_.reset();
  if (fd_ >= 0) ::close(fd_);
  if (!committed_) ::unlink(PartialPath(path_).c_str());
}

absl::Status PackFileWriter::Write(absl::Span<const std::byte> bytes) {
  part_hash_.Add(bytes);
  while (!bytes.empty()) {
    const size_t size = std::min(bytes.size(), static_cast<size_t>(kBufferBytes - filled_));
    std::memcpy(filling_.data() + filled_, bytes.data(), size);
    bytes.remove_prefix(size);
    filled_ += static_cast<int64_t>(size);
    bytes_ += static_cast<int64_t>(size);
    if (filled_ == kBufferBytes) CARAVAN_RETURN_IF_ERROR(Flush());
  }
  return absl::OkStatus();
}

absl::Status PackFileWriter::Flush() {
  writing_.reset();
  CARAVAN_RETURN_IF_ERROR(written_);
  std::swap(filling_, leaving_);
  const int64_t size = std::exchange(filled_, 0);
  writing_.emplace("pack-writer", [this, size] {
    hash_.Add(absl::MakeConstSpan(leaving_.data(), static_cast<size_t>(size)));
    const int64_t whole = direct_ ? RoundUp(size, kBlockBytes) : size;
    std::memset(leaving_.data() + size, 0, static_cast<size_t>(whole - size));
    for (int64_t done = 0; done < whole;) {
      const ssize_t n = ::write(fd_, leaving_.data() + done, static_cast<size_t>(whole - done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EINVAL && StopDirectWrites(fd_)) continue;
      if (n < 0) {
        written_ = WriteError(errno, path_);
        return;
      }
      done += n;
    }
  });
  return absl::OkStatus();
}

absl::Status PackFileWriter::PadTo(int64_t offset) {
  CARAVAN_CHECK(offset >= bytes_);
  static const std::vector<std::byte>& zeros = *new std::vector<std::byte>(4096);
  while (bytes_ < offset) {
    const int64_t size = std::min<int64_t>(offset - bytes_, static_cast<int64_t>(zeros.size()));
    CARAVAN_RETURN_IF_ERROR(Write(absl::MakeConstSpan(zeros).first(static_cast<size_t>(size))));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> PackFileWriter::Commit() {
  CARAVAN_RETURN_IF_ERROR(Flush());
  writing_.reset();
  CARAVAN_RETURN_IF_ERROR(written_);
  if (direct_ && ::ftruncate(fd_, bytes_) != 0) return WriteError(errno, path_);
  if (::fsync(fd_) != 0) return WriteError(errno, path_);
  const int closed = ::close(fd_);
  fd_ = -1;
  if (closed != 0 || std::rename(PartialPath(path_).c_str(), path_.c_str()) != 0) {
    return WriteError(errno, path_);
  }
  committed_ = true;
  CARAVAN_RETURN_IF_ERROR(SyncDirectoryOf(path_));
  return hash_.Digest();
}

absl::Status WritePackFile(const std::string& path, absl::string_view text) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<PackFileWriter> file,
                           PackFileWriter::Create(path));
  CARAVAN_RETURN_IF_ERROR(file->Write(
      absl::MakeConstSpan(reinterpret_cast<const std::byte*>(text.data()), text.size())));
  return file->Commit().status();
}

}  // namespace caravan
