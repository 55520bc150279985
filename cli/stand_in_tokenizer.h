#ifndef CARAVAN_CLI_STAND_IN_TOKENIZER_H_
#define CARAVAN_CLI_STAND_IN_TOKENIZER_H_

// A tokenizer for a synthetic model, so that what is measured goes the way of real prompts: a token
// a byte, and the marks of DeepSeek's chat form. Most of what such a model says is no text.

#include <string>

#include "absl/status/statusor.h"
#include "model/model_config.h"
#include "model/stored_model.h"

namespace caravan {

struct StandInTokenizer {
  std::string tokenizer_json;
  std::string config_json;  // tokenizer_config.json
};

/// Whether the model has none of its own.
bool NeedsStandIn(const StoredModel& model);

/// Errors: InvalidArgument - the vocabulary has no room for it.
absl::StatusOr<StandInTokenizer> MakeStandInTokenizer(const ModelConfig& config);

}  // namespace caravan

#endif  // CARAVAN_CLI_STAND_IN_TOKENIZER_H_
