#include "model/text_model.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/text_files.h"

namespace caravan {

absl::StatusOr<std::unique_ptr<TextModel>> TextModel::Load(const std::string& model_path,
                                                           const ModelConfig& config) {
  std::unique_ptr<TextModel> text(new TextModel);
  const absl::StatusOr<TextFile> tokens = ReadTextFile(model_path, "tokenizer.json");
  if (absl::IsNotFound(tokens.status())) {
    return absl::NotFoundError(
        absl::StrCat(tokens.status().message(),
                     "; without a tokenizer (synthetic models have none) there is no text"));
  }
  CARAVAN_RETURN_IF_ERROR(tokens.status());
  CARAVAN_ASSIGN_OR_RETURN(text->tokenizer_, Tokenizer::Parse(tokens->text, tokens->origin));
  if (text->tokenizer_->vocab_size() > config.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(tokens->origin, ": token ids go up to ", text->tokenizer_->vocab_size() - 1,
                     ", past config.json's vocab_size ", config.vocab_size));
  }
  CARAVAN_ASSIGN_OR_RETURN(const TextFile chat, ReadTextFile(model_path, "tokenizer_config.json"));
  CARAVAN_ASSIGN_OR_RETURN(text->chat_,
                           ChatTemplate::Parse(chat.text, chat.origin, *text->tokenizer_));
  text->stop_token_ids_ = config.eos_token_ids;
  const int32_t eos = text->chat_->eos_token_id();
  if (std::count(text->stop_token_ids_.begin(), text->stop_token_ids_.end(), eos) == 0) {
    text->stop_token_ids_.push_back(eos);
  }
  return text;
}

bool TextModel::BeginText(std::vector<int32_t>& ids) const {
  const int32_t bos = chat_->bos_token_id();
  if (!chat_->text_begins_with_bos() || (!ids.empty() && ids[0] == bos)) return false;
  ids.insert(ids.begin(), bos);
  return true;
}

}  // namespace caravan
