#ifndef CARAVAN_COORDINATOR_OPENAI_RESPONSE_JSON_H_
#define CARAVAN_COORDINATOR_OPENAI_RESPONSE_JSON_H_

// Replies as OpenAI's clients read them: whole ones and the chunks of a stream, of chats and of
// completions.

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/openai/generation_request.h"
#include "coordinator/openai/reply_assembler.h"
#include "model/tokenizer.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// One choice, or in a chunk what it grew by.
struct ReplyChoice {
  int index = 0;
  std::string thought;  // a chat's
  std::string answer;   // or the completion's text
  std::vector<ReplyToken> thought_tokens;
  std::vector<ReplyToken> answer_tokens;
  const char* finish_reason = nullptr;  // nullptr: not yet

  bool empty() const {
    return thought.empty() && answer.empty() && thought_tokens.empty() && answer_tokens.empty() &&
           finish_reason == nullptr;
  }
  /// Appends.
  void Add(ReplyPiece piece);
};

struct ReplyUsage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt
  int64_t completion_tokens = 0;
  int64_t thought_tokens = 0;  // of the completion
};

/// What all replies to one request have in common. Borrows the tokenizer.
struct ReplyFrame {
  GenerationApi api = GenerationApi::kChat;
  std::string id;
  std::string model;
  int64_t created = 0;  // seconds since 1970
  bool logprobs = false;
  bool usage_at_end = false;  // of a stream: UsageChunkJson follows
  const Tokenizer* tokenizer = nullptr;
};

nlohmann::json UsageJson(const ReplyUsage& usage);

/// The whole reply.
nlohmann::json ReplyJson(const ReplyFrame& frame, const std::vector<ReplyChoice>& choices,
                         const ReplyUsage& usage);

/// A chunk of a stream. `is_first`: the choice's first, which tells a chat's role. With
/// usage_at_end its usage is null.
nlohmann::json ChunkJson(const ReplyFrame& frame, const ReplyChoice& growth, bool is_first);

/// The last chunk of a stream whose client asked for the usage.
nlohmann::json UsageChunkJson(const ReplyFrame& frame, const ReplyUsage& usage);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_RESPONSE_JSON_H_
