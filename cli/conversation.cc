#include "cli/conversation.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"

namespace caravan {

v1::SubmitRequest Conversation::Ask(const std::string& message) const {
  v1::SubmitRequest request = flags_.NewRequest();
  for (const Turn& turn : turns_) {
    AddMessage(request, "user", turn.message);
    AddMessage(request, "assistant", turn.answer);
  }
  AddMessage(request, "user", message);
  return request;
}

void Conversation::Add(std::string message, std::string answer) {
  turns_.push_back({std::move(message), std::move(answer)});
}

ChatInput ParseChatInput(const std::string& line) {
  const absl::string_view text = absl::StripAsciiWhitespace(line);
  if (text.empty()) return {};
  if (!absl::StartsWith(text, "/")) return {ChatInputKind::kMessage, line};
  if (absl::StartsWith(text, "//")) return {ChatInputKind::kMessage, std::string(text.substr(1))};
  const size_t blank = text.find_first_of(" \t\n");
  const absl::string_view word = text.substr(0, blank);
  const bool alone = blank == absl::string_view::npos;
  if (word == "/system") {
    return {ChatInputKind::kSystem,
            alone ? "" : std::string(absl::StripLeadingAsciiWhitespace(text.substr(blank)))};
  }
  if (alone && word == "/help") return {ChatInputKind::kHelp, ""};
  if (alone && word == "/new") return {ChatInputKind::kNew, ""};
  if (alone && word == "/quit") return {ChatInputKind::kQuit, ""};
  return {ChatInputKind::kUnknown, std::string(word)};
}

std::string ChatHelp() {
  return "/help          this\n"
         "/new           forget what was said, and begin anew\n"
         "/system TEXT   put TEXT before the conversation from now on; without TEXT: nothing\n"
         "/quit          leave, as Ctrl-D does\n"
         "//...          a message that begins with /\n"
         "...\\           a message that goes on with the next line\n"
         "Ctrl-C         end the reply, or drop the line; once more: leave\n";
}

}  // namespace caravan
