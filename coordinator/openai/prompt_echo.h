#ifndef CARAVAN_COORDINATOR_OPENAI_PROMPT_ECHO_H_
#define CARAVAN_COORDINATOR_OPENAI_PROMPT_ECHO_H_

// A completion's prompt as the beginning of its text.

#include <cstdint>
#include <optional>
#include <vector>

#include "coordinator/openai/generation_request.h"
#include "coordinator/openai/reply_assembler.h"
#include "model/scored_token.h"
#include "model/tokenizer.h"

namespace caravan {

/// Not thread-safe. Borrows everything.
class PromptEcho {
 public:
  /// `with_scores`: it waits for the prompt's scores.
  PromptEcho(const Tokenizer* tokenizer, const GenerationRequest::Prompt* prompt, bool with_scores);

  /// Characters of the prompt, without what the client did not send.
  int64_t num_characters() const { return num_characters_; }

  /// `scores` are of the prompt's tokens 1, 2, ..., in as many pieces as they come.
  void Push(const std::vector<ScoredToken>& scores);

  /// The prompt, once, when all is known of it (or `at_once`, with the scores that there are).
  std::optional<ReplyPiece> Take(bool at_once);

 private:
  const Tokenizer* const tokenizer_;
  const GenerationRequest::Prompt* const prompt_;
  const bool with_scores_;
  int64_t num_characters_ = 0;
  std::vector<ScoredToken> scores_;
  bool taken_ = false;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_PROMPT_ECHO_H_
