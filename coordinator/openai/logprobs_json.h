#ifndef CARAVAN_COORDINATOR_OPENAI_LOGPROBS_JSON_H_
#define CARAVAN_COORDINATOR_OPENAI_LOGPROBS_JSON_H_

// Tokens with their log-probabilities, in the two shapes that OpenAI's APIs have for them.

#include <vector>

#include "coordinator/openai/reply_assembler.h"
#include "model/tokenizer.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// A chat's: {"content": [{token, logprob, bytes, top_logprobs}...], "reasoning_content": [...]}.
/// `token` has U+FFFD where its bytes are part of a character; `bytes` has them.
nlohmann::json ChatLogprobsJson(const Tokenizer& tokenizer,
                                const std::vector<ReplyToken>& thought_tokens,
                                const std::vector<ReplyToken>& answer_tokens);

/// A completion's: {"tokens", "token_logprobs", "top_logprobs", "text_offset"}, a list each. A
/// token that is part of a character is spelt bytes:\xe4\xbd. Top_logprobs have the token itself
/// too.
nlohmann::json CompletionLogprobsJson(const Tokenizer& tokenizer,
                                      const std::vector<ReplyToken>& tokens);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_LOGPROBS_JSON_H_
