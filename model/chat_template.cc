#include "model/chat_template.h"

#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "model/utf8_stream.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr absl::string_view kUser = "<｜User｜>";
constexpr absl::string_view kAssistant = "<｜Assistant｜>";
constexpr absl::string_view kThinkBegin = "<think>";
constexpr absl::string_view kThinkEnd = "</think>";

/// A token's text: a string, or an object with "content".
absl::StatusOr<std::string> TokenText(const json& file, const JsonFields& fields,
                                      absl::string_view name, const Tokenizer& tokenizer) {
  std::string text;
  const auto value = file.find(std::string(name));
  if (value != file.end() && value->is_object()) {
    CARAVAN_ASSIGN_OR_RETURN(const JsonFields token, fields.Object(name));
    CARAVAN_ASSIGN_OR_RETURN(text, token.String("content"));
  } else {
    CARAVAN_ASSIGN_OR_RETURN(text, fields.String(name));
  }
  if (!tokenizer.AddedToken(text).has_value()) {
    return fields.Error(name, absl::StrCat("is \"", text, "\", which tokenizer.json does not add"));
  }
  return text;
}

/// Whether the prompts that `jinja` generates end with <think> and a line break; nullopt when it
/// is not of a kind that we know.
std::optional<bool> EndsInThought(absl::string_view jinja) {
  // V3.1 closes the thought right in the prompt.
  if (!absl::StrContains(jinja, kUser) ||
      absl::StrContains(jinja, absl::StrCat(kAssistant, kThinkEnd))) {
    return std::nullopt;
  }
  const size_t last = jinja.rfind(kAssistant);  // the generation prompt comes last
  if (last == absl::string_view::npos) return std::nullopt;
  absl::string_view rest = jinja.substr(last + kAssistant.size());
  const bool thinks = absl::ConsumePrefix(&rest, kThinkBegin);
  // In a Jinja literal the line break is written out or escaped.
  if (thinks && !absl::ConsumePrefix(&rest, "\n") && !absl::ConsumePrefix(&rest, "\\n")) {
    return std::nullopt;
  }
  if (!absl::StartsWith(rest, "'") && !absl::StartsWith(rest, "\"")) return std::nullopt;
  return thinks;
}

absl::Status TurnError(size_t turn, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("messages[", turn, "]: ", what));
}

absl::string_view WithoutThought(absl::string_view reply) {
  const size_t end = reply.rfind(kThinkEnd);
  return end == absl::string_view::npos ? reply : reply.substr(end + kThinkEnd.size());
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(absl::string_view text,
                                                                  absl::string_view origin,
                                                                  const Tokenizer& tokenizer) {
  CARAVAN_ASSIGN_OR_RETURN(const json file, ParseJson(text, origin));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(file, origin));
  CARAVAN_ASSIGN_OR_RETURN(const std::string jinja, fields.String("chat_template"));
  const std::optional<bool> ends_in_thought = EndsInThought(jinja);
  if (!ends_in_thought.has_value()) {
    return fields.Error("chat_template",
                        "is not of DeepSeek R1's or V3's kind, and Caravan runs no other");
  }
  for (const absl::string_view mark : {kUser, kAssistant}) {
    if (!tokenizer.AddedToken(mark).has_value()) {
      return fields.Error("chat_template",
                          absl::StrCat("uses ", mark, ", which tokenizer.json does not add"));
    }
  }
  std::unique_ptr<ChatTemplate> chat(new ChatTemplate(tokenizer));
  CARAVAN_ASSIGN_OR_RETURN(chat->bos_token_, TokenText(file, fields, "bos_token", tokenizer));
  CARAVAN_ASSIGN_OR_RETURN(chat->eos_token_, TokenText(file, fields, "eos_token", tokenizer));
  chat->bos_token_id_ = *tokenizer.AddedToken(chat->bos_token_);
  CARAVAN_ASSIGN_OR_RETURN(chat->text_begins_with_bos_, fields.Bool("add_bos_token", true));
  chat->eos_token_id_ = *tokenizer.AddedToken(chat->eos_token_);
  // V3's kind remembers whether a system text is the first, to put blank lines between them.
  chat->system_separator_ = absl::StrContains(jinja, "is_first_sp") ? "\n\n" : "";
  chat->reply_starts_in_thought_ = *ends_in_thought;
  return chat;
}

absl::StatusOr<std::string> ChatTemplate::Render(absl::Span<const ChatTurn> turns) const {
  if (turns.empty()) return absl::InvalidArgumentError("messages: must not be empty");
  std::string system;
  std::string rest;
  bool first_system = true;
  for (size_t i = 0; i < turns.size(); ++i) {
    const auto& [role, content] = turns[i];
    if (const std::optional<size_t> offset = FindInvalidUtf8(content)) {
      return TurnError(i, absl::StrCat("content is not valid UTF-8 at byte ", *offset));
    }
    if (role == "system") {
      absl::StrAppend(&system, first_system ? "" : system_separator_, content);
      first_system = false;
    } else if (role == "user") {
      absl::StrAppend(&rest, kUser, content);
    } else if (role == "assistant") {
      absl::StrAppend(&rest, kAssistant, WithoutThought(content), eos_token_);
    } else {
      return TurnError(i, "role must be \"system\", \"user\" or \"assistant\"");
    }
  }
  const size_t last = turns.size() - 1;
  if (turns[last].role != "user") return TurnError(last, "the last message must be the user's");
  if (turns[last].content.empty()) return TurnError(last, "the prompt is empty");
  return absl::StrCat(bos_token_, system, rest, kAssistant,
                      reply_starts_in_thought_ ? "<think>\n" : "");
}

absl::StatusOr<std::vector<int32_t>> ChatTemplate::Encode(absl::Span<const ChatTurn> turns) const {
  CARAVAN_ASSIGN_OR_RETURN(const std::string prompt, Render(turns));
  return tokenizer_.Encode(prompt);
}

}  // namespace caravan
