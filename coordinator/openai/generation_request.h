#ifndef CARAVAN_COORDINATOR_OPENAI_GENERATION_REQUEST_H_
#define CARAVAN_COORDINATOR_OPENAI_GENERATION_REQUEST_H_

// What /v1/chat/completions and /v1/completions ask for, checked and in token ids. docs/api.md
// lists the fields.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "caravan/v1/pipeline.pb.h"
#include "model/text_model.h"
#include "nlohmann/json.hpp"

namespace caravan {

enum class GenerationApi { kChat, kCompletion };

struct GenerationRequest {
  struct Prompt {
    std::vector<int32_t> token_ids;
    int64_t added_tokens = 0;  // of token_ids, the first that the client did not send
  };

  GenerationApi api = GenerationApi::kChat;
  std::vector<Prompt> prompts;        // at least one; of a chat exactly one
  int num_choices = 1;                // for each prompt
  std::optional<int64_t> max_tokens;  // nullopt: what the context leaves
  v1::SamplingParams sampling;        // without seed
  std::optional<uint64_t> seed;       // nullopt: each choice draws its own
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool echo = false;
  bool logprobs = false;  // how many alternatives: sampling.num_alternatives
  bool stream = false;
  bool include_usage = false;  // with `stream`: a last chunk tells it
};

/// What the server serves; what requests are checked against.
struct ServedModel {
  std::string name;
  const TextModel* text = nullptr;
  int64_t context_tokens = 0;
  int64_t vocab_size = 0;
  int64_t created = 0;  // seconds since 1970
};

/// Errors, with the field's name as "param":
///   InvalidArgument - a field of a wrong type or out of range, a prompt that cannot be taken or
///     does not fit the context, or something that Caravan does not do; NotFound - another model;
///   Unimplemented - response_format or a grammar.
absl::StatusOr<GenerationRequest> ParseGenerationRequest(GenerationApi api,
                                                         const nlohmann::json& body,
                                                         const ServedModel& model);

/// Of any request's body. Errors: NotFound - it names another model; InvalidArgument.
absl::Status CheckModelName(const nlohmann::json& body, const ServedModel& model);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_GENERATION_REQUEST_H_
