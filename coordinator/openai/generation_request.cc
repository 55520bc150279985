#include "coordinator/openai/generation_request.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/http/http_error.h"
#include "coordinator/openai/prompt_fields.h"
#include "coordinator/openai/request_fields.h"
#include "coordinator/openai/sampling_fields.h"

namespace caravan {
namespace {

using nlohmann::json;

// OpenAI's limit of n.
constexpr int64_t kMaxChoices = 128;
// Of all prompts together: each is a job.
constexpr int64_t kMaxJobs = 1024;

// OpenAI's default for completions; a chat's reply goes on to its end.
constexpr int64_t kDefaultCompletionTokens = 16;

// Under these names a grammar is asked for, here and elsewhere.
constexpr const char* kGrammarFields[] = {"grammar",           "guided_json",    "guided_regex",
                                          "guided_choice",     "guided_grammar", "json_schema",
                                          "structured_outputs"};

bool IsSet(const json& value) {
  return !value.is_null() && value != false && value != 0 && value != json::array() &&
         value != json::object() && value != "";
}

absl::Status CheckFormat(const RequestFields& fields) {
  for (const char* name : kGrammarFields) {
    if (IsSet(fields.Value(name))) {
      return WithParam(absl::UnimplementedError(absl::StrCat(
                           name, ": Caravan does not constrain replies by a grammar yet")),
                       name);
    }
  }
  if (!fields.Has("response_format")) return absl::OkStatus();
  CARAVAN_ASSIGN_OR_RETURN(const RequestFields format,
                           RequestFields::Of(fields.Value("response_format"), "response_format"));
  const absl::StatusOr<std::string> type = format.String("type");
  if (!type.ok()) return type.status();
  if (*type == "text") return absl::OkStatus();
  if (*type == "json_object" || *type == "json_schema") {
    return WithParam(absl::UnimplementedError(absl::StrCat("response_format: \"", *type,
                                                           "\" is not there yet, only \"text\"")),
                     "response_format");
  }
  return ParamError(format.Param("type"), "must be \"text\", \"json_object\" or \"json_schema\"");
}

/// What others do and Caravan does not, and that would change the reply if it were ignored.
absl::Status CheckUnsupported(const RequestFields& fields, GenerationApi api) {
  const auto refuse = [&](const char* name) {
    return IsSet(fields.Value(name)) ? ParamError(name, "is not supported") : absl::OkStatus();
  };
  for (const char* name : {"min_tokens", "stop_token_ids", "allowed_token_ids", "bad_words",
                           "use_beam_search", "truncate_prompt_tokens"}) {
    CARAVAN_RETURN_IF_ERROR(refuse(name));
  }
  if (api == GenerationApi::kCompletion) {
    CARAVAN_RETURN_IF_ERROR(refuse("suffix"));
    CARAVAN_ASSIGN_OR_RETURN(const int64_t n, fields.Int("n", 1, kMaxChoices, 1));
    CARAVAN_ASSIGN_OR_RETURN(const int64_t best_of, fields.Int("best_of", 1, kMaxChoices, n));
    return best_of == n ? absl::OkStatus() : ParamError("best_of", "must equal n");
  }
  for (const char* name : {"tools", "functions", "audio", "web_search_options", "chat_template",
                           "continue_final_message"}) {
    CARAVAN_RETURN_IF_ERROR(refuse(name));
  }
  if (fields.Has("modalities") && fields.Value("modalities") != json::array({"text"})) {
    return ParamError("modalities", "only [\"text\"] is supported");
  }
  return absl::OkStatus();
}

absl::Status ParseLogprobs(const RequestFields& fields, GenerationRequest& request) {
  int64_t alternatives = 0;
  if (request.api == GenerationApi::kCompletion) {
    // A number, of which false stands for none.
    request.logprobs = fields.Has("logprobs") && fields.Value("logprobs") != false;
    if (request.logprobs) {
      CARAVAN_ASSIGN_OR_RETURN(alternatives, fields.Int("logprobs", 0, kMaxAlternatives));
    }
  } else {
    CARAVAN_ASSIGN_OR_RETURN(request.logprobs, fields.Bool("logprobs", false));
    CARAVAN_ASSIGN_OR_RETURN(alternatives, fields.Int("top_logprobs", 0, kMaxAlternatives, 0));
    if (alternatives > 0 && !request.logprobs) {
      return ParamError("top_logprobs", "needs logprobs to be true");
    }
  }
  request.sampling.set_num_alternatives(static_cast<uint32_t>(alternatives));
  return absl::OkStatus();
}

absl::Status ParseLength(const RequestFields& fields, GenerationRequest& request) {
  const bool chat = request.api == GenerationApi::kChat;
  for (const char* name : {"max_tokens", "max_completion_tokens"}) {  // the later wins
    if (!fields.Has(name)) continue;
    CARAVAN_ASSIGN_OR_RETURN(request.max_tokens, fields.Int(name, chat ? 1 : 0, INT32_MAX));
  }
  if (!chat && !request.max_tokens.has_value()) request.max_tokens = kDefaultCompletionTokens;
  CARAVAN_ASSIGN_OR_RETURN(request.ignore_eos, fields.Bool("ignore_eos", false));
  return absl::OkStatus();
}

absl::Status ParseStreaming(const RequestFields& fields, GenerationRequest& request) {
  CARAVAN_ASSIGN_OR_RETURN(request.stream, fields.Bool("stream", false));
  if (!fields.Has("stream_options")) return absl::OkStatus();
  CARAVAN_ASSIGN_OR_RETURN(const RequestFields options,
                           RequestFields::Of(fields.Value("stream_options"), "stream_options"));
  CARAVAN_ASSIGN_OR_RETURN(request.include_usage, options.Bool("include_usage", false));
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckModelName(const json& body, const ServedModel& model) {
  CARAVAN_ASSIGN_OR_RETURN(const RequestFields fields, RequestFields::Of(body));
  CARAVAN_ASSIGN_OR_RETURN(const std::string name, fields.String("model", model.name));
  if (name == model.name) return absl::OkStatus();
  return WithErrorCode(
      WithParam(absl::NotFoundError(absl::StrCat("model: \"", name, "\" is not served here, but \"",
                                                 model.name, "\"")),
                "model"),
      "model_not_found");
}

absl::StatusOr<GenerationRequest> ParseGenerationRequest(GenerationApi api, const json& body,
                                                         const ServedModel& model) {
  CARAVAN_ASSIGN_OR_RETURN(const RequestFields fields, RequestFields::Of(body));
  CARAVAN_RETURN_IF_ERROR(CheckModelName(body, model));
  CARAVAN_RETURN_IF_ERROR(CheckFormat(fields));
  CARAVAN_RETURN_IF_ERROR(CheckUnsupported(fields, api));
  GenerationRequest request;
  request.api = api;
  CARAVAN_RETURN_IF_ERROR(ParseSampling(fields, model.vocab_size, request.sampling));
  CARAVAN_ASSIGN_OR_RETURN(request.seed, ParseSeed(fields));
  CARAVAN_ASSIGN_OR_RETURN(request.stop, ParseStop(fields));
  CARAVAN_RETURN_IF_ERROR(ParseLogprobs(fields, request));
  CARAVAN_RETURN_IF_ERROR(ParseLength(fields, request));
  CARAVAN_RETURN_IF_ERROR(ParseStreaming(fields, request));
  CARAVAN_ASSIGN_OR_RETURN(const int64_t choices, fields.Int("n", 1, kMaxChoices, 1));
  request.num_choices = static_cast<int>(choices);
  // Last, for it costs most.
  if (api == GenerationApi::kChat) {
    CARAVAN_ASSIGN_OR_RETURN(request.prompts, ParseMessages(fields, model));
  } else {
    CARAVAN_ASSIGN_OR_RETURN(request.echo, fields.Bool("echo", false));
    CARAVAN_ASSIGN_OR_RETURN(request.prompts, ParsePrompts(fields, kMaxJobs, model));
  }
  if (static_cast<int64_t>(request.prompts.size()) * choices > kMaxJobs) {
    return ParamError("n", absl::StrCat("times the prompts must be at most ", kMaxJobs));
  }
  return request;
}

}  // namespace caravan
