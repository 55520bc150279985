#include "base/output_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace caravan {
namespace {

/// `path`: what errno says.
std::string Complaint(const std::string& path, int error) {
  return std::string(absl::ErrnoToStatus(error, path).message());
}

bool IsFull(int error) { return error == ENOSPC || error == EDQUOT; }

}  // namespace

absl::StatusOr<std::unique_ptr<OutputFile>> OutputFile::Create(const std::string& path) {
  struct stat there = {};
  const bool exists = ::stat(path.c_str(), &there) == 0;
  // Renaming would find out only when all is done.
  if (exists && S_ISDIR(there.st_mode)) {
    return absl::InvalidArgumentError(Complaint(path, EISDIR));
  }
  // A pipe or a device is written to, not replaced; and a link stays, its target is replaced.
  const bool in_place = exists && !S_ISREG(there.st_mode);
  std::error_code ignored;
  std::string target = exists ? std::filesystem::canonical(path, ignored).string() : path;
  if (target.empty()) target = path;
  std::string scratch = in_place ? "" : absl::StrCat(target, ".", ::getpid(), ".new");
  std::FILE* const file = std::fopen((in_place ? target : scratch).c_str(), "wbe");
  if (file == nullptr) {
    const int error = errno;
    const std::string complaint = Complaint(path, error);
    if (IsFull(error)) return absl::ResourceExhaustedError(complaint);
    return absl::InvalidArgumentError(complaint);
  }
  return std::unique_ptr<OutputFile>(new OutputFile(std::move(target), std::move(scratch), file));
}

OutputFile::~OutputFile() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  if (!scratch_.empty()) std::remove(scratch_.c_str());
}

absl::Status OutputFile::Write(absl::string_view bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) return Failed();
  return absl::OkStatus();
}

absl::Status OutputFile::Commit() {
  const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
  if (closed && scratch_.empty()) return absl::OkStatus();
  if (closed && std::rename(scratch_.c_str(), path_.c_str()) == 0) return absl::OkStatus();
  const absl::Status failed = Failed();
  if (!scratch_.empty()) std::remove(scratch_.c_str());
  return failed;
}

absl::Status OutputFile::Failed() const {
  const int error = errno;
  const std::string complaint = Complaint(path_, error);
  return IsFull(error) ? absl::ResourceExhaustedError(complaint) : absl::DataLossError(complaint);
}

}  // namespace caravan
