#ifndef CARAVAN_CLI_CHAT_HISTORY_H_
#define CARAVAN_CLI_CHAT_HISTORY_H_

// What a person typed in earlier chats, in a file that nobody else may read: a line an entry,
// oldest first.

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// Not thread-safe. Several processes may append to one file.
class ChatHistory {
 public:
  /// $XDG_STATE_HOME/caravan/chat_history, or ~/.local/state/caravan/chat_history; empty where
  /// neither variable says where.
  static std::string DefaultPath();

  /// Makes the file, with mode 0600, and its folders, with 0700, where they are missing. A file
  /// that has grown past 1 MiB is cut to its newest lines. Errors: PermissionDenied, ... - they
  /// cannot be made or read; names the path.
  static absl::StatusOr<ChatHistory> Open(const std::string& path);

  /// Lines of earlier chats, oldest first; at most kMaxLines.
  const std::vector<std::string>& lines() const { return lines_; }

  /// REQUIRES: no line break in `line`.
  /// Errors: as the write; names the path.
  absl::Status Append(absl::string_view line);

  static constexpr size_t kMaxLines = 1000;

 private:
  ChatHistory(std::string path, std::vector<std::string> lines)
      : path_(std::move(path)), lines_(std::move(lines)) {}

  std::string path_;
  std::vector<std::string> lines_;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_CHAT_HISTORY_H_
