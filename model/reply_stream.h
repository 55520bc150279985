#ifndef CARAVAN_MODEL_REPLY_STREAM_H_
#define CARAVAN_MODEL_REPLY_STREAM_H_

// A reply's tokens, one by one, as text: thought and answer told apart.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/tokenizer.h"
#include "model/utf8_stream.h"

namespace caravan {

enum class ReplyPart { kThought, kAnswer };

/// What the reply grew by. `text` is as the model wrote it, line breaks included, and holds whole
/// characters only.
struct ReplyDelta {
  ReplyPart part = ReplyPart::kAnswer;
  std::string text;                // empty: the token is no text, or begins a character
  std::vector<int32_t> token_ids;  // that became known with it
  friend bool operator==(const ReplyDelta&, const ReplyDelta&) = default;
};

/// `<think>` and `</think>` begin and end the thought; these two and the end-of-sentence token are
/// no text, but their ids come in a delta like any other's (both marks count to the thought).
/// Without such tokens in the vocabulary all is answer. Not thread-safe.
class ReplyStream {
 public:
  /// `tokenizer` must outlive the stream. `starts_in_thought`: the prompt ended with `<think>`.
  ReplyStream(const Tokenizer& tokenizer, std::vector<int32_t> eos_token_ids,
              bool starts_in_thought = false);

  /// The deltas that the next token gives: one, or two where a mark comes in the midst of a
  /// character. Ids that the tokenizer does not know have no text.
  std::vector<ReplyDelta> Push(int32_t token_id);

  /// The reply has ended: U+FFFD if a character was left unfinished, else nothing.
  std::vector<ReplyDelta> Finish();

 private:
  const Tokenizer& tokenizer_;
  const std::vector<int32_t> eos_token_ids_;
  const std::optional<int32_t> think_begin_;
  const std::optional<int32_t> think_end_;
  ReplyPart part_;
  Utf8Stream utf8_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_REPLY_STREAM_H_
