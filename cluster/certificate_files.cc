#include "cluster/certificate_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{1} << 20;
constexpr mode_t kOwnerOnly = 0600;

absl::Status CannotMake(const std::string& path) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": it cannot be made: ", std::strerror(errno)));
}

/// Writes all of it to the disk and closes `fd`.
absl::Status WriteAndClose(int fd, const std::string& path, absl::string_view text) {
  bool good = true;
  while (good && !text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    good = written > 0;
    if (good) text.remove_prefix(static_cast<size_t>(written));
  }
  good = ::fsync(fd) == 0 && good;
  good = ::close(fd) == 0 && good;
  if (good) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path, ": the disk is full or failed"));
}

}  // namespace

std::string AuthorityPath(const std::string& directory) { return JoinPath(directory, "ca.pem"); }
std::string AuthorityKeyPath(const std::string& directory) { return JoinPath(directory, "ca.key"); }
std::string IdentityPath(const std::string& directory) {
  return JoinPath(directory, "identity.pem");
}

absl::Status MakePrivateDirectory(const std::string& directory) {
  std::error_code error;
  if (std::filesystem::is_directory(directory, error)) return absl::OkStatus();
  error.clear();
  std::filesystem::path path = std::filesystem::path(directory).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();  // it ended with /
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path(), error);
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat(directory, ": it cannot be made: ", error.message()));
  }
  if (::mkdir(path.c_str(), 0700) != 0) return CannotMake(directory);
  return absl::OkStatus();
}

absl::Status WritePrivateFile(const std::string& path, absl::string_view text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, kOwnerOnly);
  if (fd < 0 && errno == EEXIST) {
    return absl::AlreadyExistsError(absl::StrCat(path, ": it is there already, and is kept"));
  }
  if (fd < 0) return CannotMake(path);
  const absl::Status written = WriteAndClose(fd, path, text);
  if (!written.ok()) ::unlink(path.c_str());
  return written;
}

absl::Status ReplacePrivateFile(const std::string& path, absl::string_view text) {
  const std::string scratch = absl::StrCat(path, ".", ::getpid(), ".new");
  const int fd = ::open(scratch.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, kOwnerOnly);
  if (fd < 0) return CannotMake(scratch);
  absl::Status status = WriteAndClose(fd, scratch, text);
  if (status.ok() && std::rename(scratch.c_str(), path.c_str()) != 0) status = CannotMake(path);
  if (!status.ok()) ::unlink(scratch.c_str());
  return status;
}

absl::StatusOr<std::string> ReadPrivateFile(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) {
    // As a secret that an orchestrator mounts: root's, readable by the service's group.
    const mode_t forbidden = info.st_uid == 0 ? 0007 : 0077;
    if ((info.st_mode & forbidden) != 0) {
      return absl::PermissionDeniedError(absl::StrCat(
          path, ": others may read or write this key (mode ", absl::Dec(((info.st_mode >> 6) & 7)),
          (info.st_mode >> 3) & 7, info.st_mode & 7,
          "): make it chmod 600, and if they did read it, a new one"));
    }
  }
  return ReadFile(path, kMaxFileBytes);
}

absl::StatusOr<std::string> ReadAuthorities(const std::string& directory) {
  return ReadFile(AuthorityPath(directory), kMaxFileBytes);
}

absl::StatusOr<std::string> ReadIdentity(const std::string& directory, absl::Time now) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string authorities, ReadAuthorities(directory));
  const std::string path = IdentityPath(directory);
  CARAVAN_ASSIGN_OR_RETURN(std::string identity, ReadPrivateFile(path));
  CARAVAN_RETURN_IF_ERROR(Annotate(CheckIdentity(authorities, identity, now), path));
  return identity;
}

absl::StatusOr<KeyAndCertificate> ReadAuthority(const std::string& directory) {
  KeyAndCertificate authority;
  CARAVAN_ASSIGN_OR_RETURN(authority.key_pem, ReadPrivateFile(AuthorityKeyPath(directory)));
  CARAVAN_ASSIGN_OR_RETURN(const std::string authorities, ReadAuthorities(directory));
  absl::StatusOr<std::string> own = CertificateOfKey(authorities, authority.key_pem);
  if (!own.ok()) return Annotate(own.status(), AuthorityPath(directory));
  authority.certificate_pem = *std::move(own);
  return authority;
}

}  // namespace caravan
