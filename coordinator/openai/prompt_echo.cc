#include "coordinator/openai/prompt_echo.h"

#include <string>
#include <utility>

#include "model/utf8_stream.h"

namespace caravan {
namespace {

/// The prompt's text, and where in it each token begins.
ReplyPiece Spell(const Tokenizer& tokenizer, const GenerationRequest::Prompt& prompt) {
  ReplyPiece piece;
  Utf8Stream utf8;
  int64_t characters = 0;
  for (size_t i = static_cast<size_t>(prompt.added_tokens); i < prompt.token_ids.size(); ++i) {
    const int32_t id = prompt.token_ids[i];
    const std::string text = utf8.Push(tokenizer.TokenBytes(id));
    piece.tokens.push_back({{id, 0, {}}, false, characters});
    piece.text += text;
    characters += CountCharacters(text);
  }
  piece.text += utf8.Flush();
  return piece;
}

}  // namespace

PromptEcho::PromptEcho(const Tokenizer* tokenizer, const GenerationRequest::Prompt* prompt,
                       bool with_scores)
    : tokenizer_(tokenizer),
      prompt_(prompt),
      with_scores_(with_scores),
      num_characters_(CountCharacters(Spell(*tokenizer, *prompt).text)) {}

void PromptEcho::Push(const std::vector<ScoredToken>& scores) {
  scores_.insert(scores_.end(), scores.begin(), scores.end());
}

std::optional<ReplyPiece> PromptEcho::Take(bool at_once) {
  const bool complete = !with_scores_ || scores_.size() + 1 >= prompt_->token_ids.size();
  if (taken_ || !(complete || at_once)) return std::nullopt;
  taken_ = true;
  ReplyPiece piece = Spell(*tokenizer_, *prompt_);
  const auto added = static_cast<size_t>(prompt_->added_tokens);
  for (size_t i = 0; i < piece.tokens.size(); ++i) {
    const size_t position = added + i;  // of the token in the prompt; 0 has no score
    if (position == 0 || position > scores_.size()) continue;
    piece.tokens[i].scored = std::move(scores_[position - 1]);
    piece.tokens[i].has_score = true;
  }
  if (!with_scores_) piece.tokens.clear();
  return piece;
}

}  // namespace caravan
