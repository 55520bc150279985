#include "cli/text_flags.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// More takes weeks.
constexpr int64_t kMaxTextBytes = int64_t{1} << 30;

}  // namespace

absl::StatusOr<int64_t> WindowTokens(std::optional<int64_t> window, int64_t context,
                                     absl::string_view whose) {
  if (context < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("--text: a ", whose, " of ", context, " token has no room for a window"));
  }
  if (window.has_value() && *window > context) {
    return absl::InvalidArgumentError(
        absl::StrCat("--window ", *window, ": more than the ", whose, " of ", context, " tokens"));
  }
  return window.value_or(std::min(kDefaultWindow, context));
}

absl::StatusOr<std::vector<int32_t>> ReadTextTokens(const std::string& path,
                                                    const Tokenizer& tokenizer) {
  const absl::StatusOr<std::string> contents = ReadFile(path, kMaxTextBytes);
  if (!contents.ok()) return Annotate(contents.status(), "--text");
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(*contents);
  if (!ids.ok()) return Annotate(ids.status(), absl::StrCat("--text ", path));
  return ids;
}

}  // namespace caravan
