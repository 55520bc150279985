#include "model/pack/pack_file_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

std::string PartialPath(const std::string& path) { return absl::StrCat(path, ".partial"); }

absl::Status WriteError(int error, const std::string& path) {
  const absl::Status status = absl::ErrnoToStatus(error, path);
  if (error == ENOSPC || error == EDQUOT) return absl::ResourceExhaustedError(status.message());
  return absl::DataLossError(status.message());
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
  const std::string partial = PartialPath(path);
  const int fd = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) {
    if (errno == ENOSPC || errno == EDQUOT) return WriteError(errno, partial);
    return absl::InvalidArgumentError(absl::ErrnoToStatus(errno, partial).message());
  }
  return std::unique_ptr<PackFileWriter>(new PackFileWriter(path, fd));
}

void PackFileWriter::RemovePartial(const std::string& path) { ::unlink(PartialPath(path).c_str()); }

PackFileWriter::~PackFileWriter() {
  if (fd_ >= 0) ::close(fd_);
  if (!committed_) ::unlink(PartialPath(path_).c_str());
}

absl::Status PackFileWriter::Write(absl::Span<const std::byte> bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(fd_, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return WriteError(errno, path_);
    done += static_cast<size_t>(n);
  }
  hash_.Add(bytes);
  bytes_ += static_cast<int64_t>(bytes.size());
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
