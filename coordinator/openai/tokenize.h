#ifndef CARAVAN_COORDINATOR_OPENAI_TOKENIZE_H_
#define CARAVAN_COORDINATOR_OPENAI_TOKENIZE_H_

// /tokenize and /detokenize, in the shape that vLLM gave them.

#include "absl/status/statusor.h"
#include "coordinator/openai/generation_request.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// {"prompt": text, "add_special_tokens": true?} or {"messages": [...]} to
/// {"tokens": ids, "count", "max_model_len"}. Errors: InvalidArgument, NotFound - as a
/// generation's.
absl::StatusOr<nlohmann::json> Tokenize(const nlohmann::json& body, const ServedModel& model);

/// {"tokens": ids} to {"prompt": text}. Errors: likewise.
absl::StatusOr<nlohmann::json> Detokenize(const nlohmann::json& body, const ServedModel& model);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_TOKENIZE_H_
