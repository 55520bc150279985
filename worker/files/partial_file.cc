#include "worker/files/partial_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/byte_size.h"
#include "base/file.h"
#include "base/output_file.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// A note has some 30 bytes, a file some thousand pieces; the bound keeps out what is none of ours.
constexpr int64_t kMaxNotesBytes = int64_t{16} << 20;

absl::Status DiskStatus(int error, const std::string& path) {
  const absl::Status status = ErrnoStatus(error, path);
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  return full ? absl::ResourceExhaustedError(status.message())
              : absl::DataLossError(status.message());
}

/// Puts down that the names in the file's directory have changed. Errors: as DiskStatus.
absl::Status SyncDirectory(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  const std::string directory = parent.empty() ? std::string(".") : parent.string();
  const FileDescriptor fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0 || ::fsync(fd.get()) != 0) return DiskStatus(errno, directory);
  return absl::OkStatus();
}

absl::Status TakeRoom(int fd, int64_t bytes, const std::string& path) {
  if (bytes == 0) return absl::OkStatus();
  if (::fallocate(fd, 0, 0, bytes) == 0) return absl::OkStatus();
  // A file system that takes no room ahead says later that it is full.
  if (errno == EOPNOTSUPP && ::ftruncate(fd, bytes) == 0) return absl::OkStatus();
  return Annotate(DiskStatus(errno, path), absl::StrCat("room for ", FormatByteSize(bytes)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<PartialFile>> PartialFile::Open(const std::string& path,
                                                               int64_t bytes) {
  const std::string part = absl::StrCat(path, kPartSuffix);
  const std::string have = absl::StrCat(path, kHaveSuffix);
  struct stat there = {};
  const bool goes_on = ::stat(part.c_str(), &there) == 0 && there.st_size == bytes;
  FileDescriptor data(
      ::open(part.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | (goes_on ? 0 : O_TRUNC), 0644));
  if (data.get() < 0) return ErrnoStatus(errno, part);
  if (absl::Status room = TakeRoom(data.get(), bytes, part); !room.ok()) {
    // Or the next life would take it for one that goes on.
    if (!goes_on) std::remove(part.c_str());
    return room;
  }
  std::string notes;
  if (goes_on) {
    absl::StatusOr<std::string> read = ReadFile(have, kMaxNotesBytes);
    if (read.ok()) notes = *std::move(read);
  }
  // The end of a note that was not written whole goes.
  notes.resize(notes.rfind('\n') == std::string::npos ? 0 : notes.rfind('\n') + 1);
  FileDescriptor noted(::open(have.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (noted.get() < 0) return ErrnoStatus(errno, have);
  if (::ftruncate(noted.get(), static_cast<off_t>(notes.size())) != 0) {
    return DiskStatus(errno, have);
  }
  std::unique_ptr<PartialFile> file(new PartialFile(path, std::move(data), std::move(noted)));
  file->Replay(notes, bytes);
  return file;
}

void PartialFile::Replay(absl::string_view notes, int64_t bytes) {
  MutexLock lock(&mu_);
  for (const absl::string_view line : absl::StrSplit(notes, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    int64_t begin = 0;
    int64_t end = 0;
    if (words.size() != 3 || (words[0] != "have" && words[0] != "lack") ||
        !absl::SimpleAtoi(words[1], &begin) || !absl::SimpleAtoi(words[2], &end) || begin < 0 ||
        begin >= end || end > bytes) {
      // Not ours, or broken: what follows cannot be relied on either.
      return;
    }
    ApplyLocked(words[0] == "have", begin, end);
  }
}

void PartialFile::ApplyLocked(bool have, int64_t begin, int64_t end) {
  // All that touches [begin, end] is taken out, and goes in again without or with what lies
  // between.
  int64_t from = begin;
  int64_t to = end;
  auto it = ranges_.upper_bound(begin);
  if (it != ranges_.begin() && std::prev(it)->second >= begin) --it;
  while (it != ranges_.end() && it->first <= end) {
    from = std::min(from, it->first);
    to = std::max(to, it->second);
    it = ranges_.erase(it);
  }
  if (have) {
    ranges_[from] = to;
    return;
  }
  if (from < begin) ranges_[from] = begin;
  if (end < to) ranges_[end] = to;
}

bool PartialFile::Has(int64_t begin, int64_t end) const {
  MutexLock lock(&mu_);
  const auto after = ranges_.upper_bound(begin);
  return after != ranges_.begin() && std::prev(after)->second >= end;
}

absl::Status PartialFile::Write(int64_t offset, absl::Span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(data_.get(), bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return DiskStatus(errno, absl::StrCat(path_, kPartSuffix));
    offset += written;
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status PartialFile::Note(absl::string_view what, int64_t begin, int64_t end) {
  const std::string line = absl::StrCat(what, " ", begin, " ", end, "\n");
  MutexLock lock(&mu_);
  const ssize_t written = ::write(have_.get(), line.data(), line.size());
  if (written != static_cast<ssize_t>(line.size())) {
    return DiskStatus(written < 0 ? errno : ENOSPC, absl::StrCat(path_, kHaveSuffix));
  }
  ApplyLocked(what == "have", begin, end);
  // Lets the disk begin, so that it does not have all to do at the end.
  if (what == "have") {
    ::sync_file_range(data_.get(), begin, end - begin, SYNC_FILE_RANGE_WRITE);
  }
  return absl::OkStatus();
}

absl::Status PartialFile::Read(int64_t offset, absl::Span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t got = ::pread(data_.get(), out.data(), out.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return DiskStatus(got < 0 ? errno : EIO, absl::StrCat(path_, kPartSuffix));
    offset += got;
    out.remove_prefix(static_cast<size_t>(got));
  }
  return absl::OkStatus();
}

absl::Status DoubtFile(const std::string& path) {
  struct stat there = {};
  if (::stat(path.c_str(), &there) != 0) return absl::OkStatus();
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> have,
                           OutputFile::Create(absl::StrCat(path, kHaveSuffix)));
  CARAVAN_RETURN_IF_ERROR(have->Write(absl::StrCat("have 0 ", there.st_size, "\n")));
  CARAVAN_RETURN_IF_ERROR(have->Commit());
  if (std::rename(path.c_str(), absl::StrCat(path, kPartSuffix).c_str()) == 0) {
    return absl::OkStatus();
  }
  return DiskStatus(errno, path);
}

absl::Status PartialFile::Finish() {
  const std::string part = absl::StrCat(path_, kPartSuffix);
  if (::fsync(data_.get()) != 0) return DiskStatus(errno, part);
  if (::rename(part.c_str(), path_.c_str()) != 0) return DiskStatus(errno, path_);
  std::remove(absl::StrCat(path_, kHaveSuffix).c_str());
  return SyncDirectory(path_);
}

}  // namespace caravan
