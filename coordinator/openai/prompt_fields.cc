#include "coordinator/openai/prompt_fields.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/http/http_error.h"

namespace caravan {
namespace {

using nlohmann::json;
using Prompt = GenerationRequest::Prompt;

/// A message's content: a string, or parts of text, which are joined.
absl::StatusOr<std::string> ParseContent(const json& content, const std::string& param) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) return ParamError(param, "must be a string or a list of parts");
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    CARAVAN_ASSIGN_OR_RETURN(const RequestFields part,
                             RequestFields::Of(content[i], absl::StrCat(param, "[", i, "]")));
    CARAVAN_ASSIGN_OR_RETURN(const std::string type, part.String("type"));
    if (type != "text") {
      return ParamError(part.Param("type"),
                        absl::StrCat("\"", type, "\" is not supported, only ", "\"text\" is"));
    }
    CARAVAN_ASSIGN_OR_RETURN(const std::string piece, part.String("text"));
    text += piece;
  }
  return text;
}

absl::StatusOr<ChatTurn> ParseTurn(const json& message, const std::string& param) {
  CARAVAN_ASSIGN_OR_RETURN(const RequestFields fields, RequestFields::Of(message, param));
  ChatTurn turn;
  CARAVAN_ASSIGN_OR_RETURN(turn.role, fields.String("role"));
  if (turn.role == "developer") turn.role = "system";
  if (turn.role == "tool" || turn.role == "function") {
    return ParamError(fields.Param("role"), "tools are not supported");
  }
  if (turn.role != "system" && turn.role != "user" && turn.role != "assistant") {
    return ParamError(fields.Param("role"),
                      "must be \"system\", \"developer\", \"user\" or \"assistant\"");
  }
  for (const char* name : {"tool_calls", "function_call"}) {
    if (fields.Has(name) && fields.Value(name) != json::array()) {
      return ParamError(fields.Param(name), "is not supported");
    }
  }
  CARAVAN_ASSIGN_OR_RETURN(turn.content,
                           ParseContent(fields.Value("content"), fields.Param("content")));
  return turn;
}

/// An error of the tokenizer, or of the chat's form, as one of the request.
absl::Status AsParamError(const absl::Status& status, const std::string& param) {
  // A text that takes the pattern too many steps will not do so less later.
  return WithParam(absl::InvalidArgumentError(status.message()), param);
}

absl::Status CheckLength(const std::vector<int32_t>& ids, const std::string& param,
                         const ServedModel& model) {
  if (ids.empty()) return ParamError(param, "is empty");
  const auto size = static_cast<int64_t>(ids.size());
  if (size <= model.context_tokens) return absl::OkStatus();
  return WithErrorCode(ParamError(param, absl::StrCat("has ", size, " tokens; the context holds ",
                                                      model.context_tokens)),
                       "context_length_exceeded");
}

absl::StatusOr<Prompt> ParsePrompt(const json& value, const std::string& param,
                                   const ServedModel& model) {
  Prompt prompt;
  if (value.is_string()) {
    absl::StatusOr<std::vector<int32_t>> ids =
        model.text->tokenizer().Encode(value.get_ref<const std::string&>());
    if (!ids.ok()) return AsParamError(ids.status(), param);
    prompt.token_ids = *std::move(ids);
    prompt.added_tokens = model.text->BeginText(prompt.token_ids) ? 1 : 0;
  } else {
    CARAVAN_ASSIGN_OR_RETURN(prompt.token_ids, ParseTokenIds(value, param, model.vocab_size));
  }
  CARAVAN_RETURN_IF_ERROR(CheckLength(prompt.token_ids, param, model));
  return prompt;
}

}  // namespace

absl::StatusOr<std::vector<ChatTurn>> ParseTurns(const json& messages) {
  if (messages.is_null()) return ParamError("messages", "is missing");
  if (!messages.is_array()) return ParamError("messages", "must be a list");
  if (messages.empty()) return ParamError("messages", "must not be empty");
  std::vector<ChatTurn> turns;
  for (size_t i = 0; i < messages.size(); ++i) {
    CARAVAN_ASSIGN_OR_RETURN(ChatTurn turn,
                             ParseTurn(messages[i], absl::StrCat("messages[", i, "]")));
    turns.push_back(std::move(turn));
  }
  return turns;
}

absl::StatusOr<std::vector<Prompt>> ParseMessages(const RequestFields& fields,
                                                  const ServedModel& model) {
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<ChatTurn> turns, ParseTurns(fields.Value("messages")));
  absl::StatusOr<std::vector<int32_t>> ids = model.text->chat().Encode(turns);
  if (!ids.ok()) return AsParamError(ids.status(), "messages");
  CARAVAN_RETURN_IF_ERROR(CheckLength(*ids, "messages", model));
  return std::vector<Prompt>{{*std::move(ids), 0}};
}

absl::StatusOr<std::vector<Prompt>> ParsePrompts(const RequestFields& fields, int64_t max_prompts,
                                                 const ServedModel& model) {
  const json& value = fields.Value("prompt");
  if (value.is_null()) return ParamError("prompt", "is missing");
  std::vector<Prompt> prompts;
  const bool several = value.is_array() && !value.empty() && !value[0].is_number();
  if (!several) {
    CARAVAN_ASSIGN_OR_RETURN(Prompt prompt, ParsePrompt(value, "prompt", model));
    prompts.push_back(std::move(prompt));
    return prompts;
  }
  if (static_cast<int64_t>(value.size()) > max_prompts) {
    return ParamError("prompt", absl::StrCat("must be at most ", max_prompts, " prompts"));
  }
  for (size_t i = 0; i < value.size(); ++i) {
    CARAVAN_ASSIGN_OR_RETURN(Prompt prompt,
                             ParsePrompt(value[i], absl::StrCat("prompt[", i, "]"), model));
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const json& list, absl::string_view param,
                                                   int64_t vocab_size) {
  if (!list.is_array()) return ParamError(param, "must be text or a list of token ids");
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const json& id = list[i];
    if (!id.is_number_integer() || id < 0 || id >= vocab_size) {
      return ParamError(absl::StrCat(param, "[", i, "]"),
                        absl::StrCat("must be a token id from 0 to ", vocab_size - 1));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace caravan
