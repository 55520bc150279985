#include "base/directory_lock.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace caravan {
namespace {

absl::Status Complaint(absl::string_view about, int error) {
  return absl::InvalidArgumentError(absl::ErrnoToStatus(error, about).message());
}

}  // namespace

absl::StatusOr<DirectoryLock> DirectoryLock::Take(const std::string& directory,
                                                  absl::string_view name) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return absl::InvalidArgumentError(absl::StrCat(directory, ": ", error.message()));
  const std::string path = JoinPath(directory, name);
  // Over NFS only who may write gets an exclusive lock.
  FileDescriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (file.get() < 0) return Complaint(path, errno);
  int locked = 0;
  do {
    locked = ::flock(file.get(), LOCK_EX | LOCK_NB);
  } while (locked != 0 && errno == EINTR);
  if (locked == 0) return DirectoryLock(std::move(file));
  if (errno != EWOULDBLOCK) return Complaint(absl::StrCat(path, ": it cannot be locked"), errno);
  return absl::FailedPreconditionError(absl::StrCat(
      directory, ": another process keeps its files there; each needs a directory of its own"));
}

}  // namespace caravan
