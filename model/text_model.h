#ifndef CARAVAN_MODEL_TEXT_MODEL_H_
#define CARAVAN_MODEL_TEXT_MODEL_H_

// The text side of a model: its tokenizer, its chat form, and the tokens that end a
// reply.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/chat_template.h"
#include "model/model_config.h"
#include "model/reply_stream.h"
#include "model/tokenizer.h"

namespace caravan {

/// Immutable, thread-safe.
class TextModel {
 public:
  /// `model_path` as OpenStoredModel's.
  /// Errors: NotFound - there is no tokenizer; as ReadTextFile, Tokenizer::Parse and
  ///         ChatTemplate::Parse; InvalidArgument - the tokenizer has more tokens than
  ///         config.vocab_size.
  static absl::StatusOr<std::unique_ptr<TextModel>> Load(const std::string& model_path,
                                                         const ModelConfig& config);

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ChatTemplate& chat() const { return *chat_; }
  /// What ends a reply: config.json's eos_token_id and the chat form's.
  const std::vector<int32_t>& stop_token_ids() const { return stop_token_ids_; }

  /// Puts the token that begins texts before `ids`, where the model was trained so and it is not
  /// there; returns whether it did. Prompts of chat()'s have it already.
  bool BeginText(std::vector<int32_t>& ids) const;

  /// For one reply to a prompt of chat()'s. Borrows this object.
  ReplyStream NewReply() const {
    return ReplyStream(*tokenizer_, stop_token_ids_, chat_->reply_starts_in_thought());
  }

 private:
  TextModel() = default;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_;
  std::vector<int32_t> stop_token_ids_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_TEXT_MODEL_H_
