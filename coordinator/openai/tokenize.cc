#include "coordinator/openai/tokenize.h"

#include <string>
#include <vector>

#include "base/status_macros.h"
#include "coordinator/http/http_error.h"
#include "coordinator/openai/prompt_fields.h"
#include "coordinator/openai/request_fields.h"

namespace caravan {
namespace {

using nlohmann::json;

absl::StatusOr<std::vector<int32_t>> TokenizeBody(const RequestFields& fields,
                                                  const ServedModel& model) {
  if (fields.Has("messages")) {
    CARAVAN_ASSIGN_OR_RETURN(const std::vector<ChatTurn> turns,
                             ParseTurns(fields.Value("messages")));
    absl::StatusOr<std::vector<int32_t>> ids = model.text->chat().Encode(turns);
    if (!ids.ok()) return ParamError("messages", ids.status().message());
    return ids;
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::string text, fields.String("prompt"));
  CARAVAN_ASSIGN_OR_RETURN(const bool add_special, fields.Bool("add_special_tokens", true));
  absl::StatusOr<std::vector<int32_t>> ids = model.text->tokenizer().Encode(text);
  if (!ids.ok()) return ParamError("prompt", ids.status().message());
  if (add_special) model.text->BeginText(*ids);
  return ids;
}

}  // namespace

absl::StatusOr<json> Tokenize(const json& body, const ServedModel& model) {
  CARAVAN_RETURN_IF_ERROR(CheckModelName(body, model));
  CARAVAN_ASSIGN_OR_RETURN(const RequestFields fields, RequestFields::Of(body));
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, TokenizeBody(fields, model));
  return json{{"tokens", ids}, {"count", ids.size()}, {"max_model_len", model.context_tokens}};
}

absl::StatusOr<json> Detokenize(const json& body, const ServedModel& model) {
  CARAVAN_RETURN_IF_ERROR(CheckModelName(body, model));
  CARAVAN_ASSIGN_OR_RETURN(const RequestFields fields, RequestFields::Of(body));
  if (!fields.Has("tokens")) return ParamError("tokens", "is missing");
  CARAVAN_ASSIGN_OR_RETURN(
      const std::vector<int32_t> ids,
      ParseTokenIds(fields.Value("tokens"), "tokens", model.text->tokenizer().vocab_size()));
  const absl::StatusOr<std::string> text = model.text->tokenizer().Decode(ids);
  if (!text.ok()) return ParamError("tokens", text.status().message());
  return json{{"prompt", *text}};
}

}  // namespace caravan
