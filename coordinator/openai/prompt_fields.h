#ifndef CARAVAN_COORDINATOR_OPENAI_PROMPT_FIELDS_H_
#define CARAVAN_COORDINATOR_OPENAI_PROMPT_FIELDS_H_

// The fields that hold what the model is to read.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/openai/generation_request.h"
#include "coordinator/openai/request_fields.h"
#include "model/chat_template.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// "messages" as turns. Errors: InvalidArgument - names the field.
absl::StatusOr<std::vector<ChatTurn>> ParseTurns(const nlohmann::json& messages);

/// "messages" as the one prompt of a chat. Errors: as ParseGenerationRequest.
absl::StatusOr<std::vector<GenerationRequest::Prompt>> ParseMessages(const RequestFields& fields,
                                                                     const ServedModel& model);

/// "prompt": a string, a list of strings, of token ids, or of lists of token ids.
/// Errors: as ParseGenerationRequest; InvalidArgument - more than `max_prompts`.
absl::StatusOr<std::vector<GenerationRequest::Prompt>> ParsePrompts(const RequestFields& fields,
                                                                    int64_t max_prompts,
                                                                    const ServedModel& model);

/// A list of token ids. Errors: InvalidArgument - names `param` and the place in the list.
absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const nlohmann::json& list,
                                                   absl::string_view param, int64_t vocab_size);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_PROMPT_FIELDS_H_
