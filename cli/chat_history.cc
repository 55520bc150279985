#include "cli/chat_history.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 20;
constexpr int64_t kMostReadBytes = int64_t{64} << 20;
constexpr mode_t kOwnerOnly = 0600;

absl::Status MakeFolders(const std::string& path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    const std::string folder = path.substr(0, slash);
    if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
      return absl::ErrnoToStatus(errno, folder);
    }
  }
  return absl::OkStatus();
}

/// Writes all of `bytes` behind what there is, or anew.
absl::Status WriteOwnerOnly(const std::string& path, int how, absl::string_view bytes) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | how, kOwnerOnly);
  if (file < 0) return absl::ErrnoToStatus(errno, path);
  // Whoever made it, and whatever the mask was.
  bool written = ::fchmod(file, kOwnerOnly) == 0;
  // In one piece, so that lines of two processes do not mix.
  written =
      written && ::write(file, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
  const absl::Status status = written ? absl::OkStatus() : absl::ErrnoToStatus(errno, path);
  ::close(file);
  return status;
}

}  // namespace

std::string ChatHistory::DefaultPath() {
  const char* const state = std::getenv("XDG_STATE_HOME");
  // The XDG specification says that a relative path is to be ignored.
  if (state != nullptr && state[0] == '/') return absl::StrCat(state, "/caravan/chat_history");
  const char* const home = std::getenv("HOME");
  if (home == nullptr || home[0] == '\0') return "";
  return absl::StrCat(home, "/.local/state/caravan/chat_history");
}

absl::StatusOr<ChatHistory> ChatHistory::Open(const std::string& path) {
  CARAVAN_RETURN_IF_ERROR(MakeFolders(path));
  CARAVAN_RETURN_IF_ERROR(WriteOwnerOnly(path, O_APPEND, ""));
  CARAVAN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMostReadBytes));
  std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipEmpty());
  if (lines.size() > kMaxLines) {
    lines.erase(lines.begin(), lines.end() - static_cast<ptrdiff_t>(kMaxLines));
  }
  if (text.size() > kMaxFileBytes) {
    const std::string scratch = absl::StrCat(path, ".", ::getpid());
    CARAVAN_RETURN_IF_ERROR(
        WriteOwnerOnly(scratch, O_TRUNC, absl::StrCat(absl::StrJoin(lines, "\n"), "\n")));
    if (::rename(scratch.c_str(), path.c_str()) != 0) return absl::ErrnoToStatus(errno, path);
  }
  return ChatHistory(path, std::move(lines));
}

absl::Status ChatHistory::Append(absl::string_view line) {
  return WriteOwnerOnly(path_, O_APPEND, absl::StrCat(line, "\n"));
}

}  // namespace caravan
