#ifndef CARAVAN_MODEL_CHAT_TEMPLATE_H_
#define CARAVAN_MODEL_CHAT_TEMPLATE_H_

// A conversation as the prompt that DeepSeek's models were trained on:
//   BOS | system texts | <｜User｜> text | <｜Assistant｜> reply EOS | ... | <｜Assistant｜>
// Not an interpreter of Jinja: Parse recognises the kinds of template that it knows.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/tokenizer.h"

namespace caravan {

struct ChatTurn {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

/// Immutable, thread-safe.
class ChatTemplate {
 public:
  /// Of a tokenizer_config.json's text; `origin` names it in errors. `tokenizer` must outlive the
  /// template.
  /// Errors: InvalidArgument - malformed, a chat_template that is not of DeepSeek R1's or V3's
  ///         kind, or a token of it that `tokenizer` lacks.
  ///         Each names the origin and the field.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(absl::string_view text,
                                                             absl::string_view origin,
                                                             const Tokenizer& tokenizer);

  /// The prompt, up to where the model's reply begins. All system texts come first, wherever they
  /// stand; of earlier replies only what follows the last `</think>` stays.
  /// Errors: InvalidArgument - no turns; an unknown role; content that is not UTF-8; a last turn
  ///         that is empty or not the user's. Names the turn, counted from 0.
  absl::StatusOr<std::string> Render(absl::Span<const ChatTurn> turns) const;

  /// Render's text as token ids. Errors: as Render and Tokenizer::Encode.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::Span<const ChatTurn> turns) const;

  /// Whether the prompt ends with `<think>`, so that the reply begins within the thought.
  bool reply_starts_in_thought() const { return reply_starts_in_thought_; }

  /// The token that begins every prompt of Render's.
  int32_t bos_token_id() const { return bos_token_id_; }
  /// Whether plain text, that is no conversation, begins with it too (add_bos_token).
  bool text_begins_with_bos() const { return text_begins_with_bos_; }

  /// The token that ends a reply.
  int32_t eos_token_id() const { return eos_token_id_; }

 private:
  explicit ChatTemplate(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  const Tokenizer& tokenizer_;
  std::string bos_token_;
  std::string eos_token_;
  int32_t bos_token_id_ = 0;
  int32_t eos_token_id_ = 0;
  bool text_begins_with_bos_ = true;
  std::string system_separator_;  // between two system texts
  bool reply_starts_in_thought_ = false;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_CHAT_TEMPLATE_H_
