#ifndef CARAVAN_MODEL_TOKENIZER_H_
#define CARAVAN_MODEL_TOKENIZER_H_

// Text to token ids and back, as a Hugging Face tokenizer.json of the byte-level BPE kind says.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/pre_tokenizer.h"

namespace caravan {

/// Immutable, thread-safe.
class Tokenizer {
 public:
  /// Errors: NotFound - no such file; InvalidArgument - malformed, or it asks for what Caravan does
  ///         not run (another model than BPE, a normalizer, truncation, ...). Each names the file
  ///         and the field.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);

  /// The same of a tokenizer.json's text. `origin` names it in errors.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(absl::string_view text,
                                                          absl::string_view origin);

  /// No special tokens are put around the text, but added tokens that are spelt out in it count.
  /// Errors: InvalidArgument - not UTF-8 (names the byte offset), or larger than 1 GiB;
  ///         ResourceExhausted - a pattern of the tokenizer took too many steps on this text.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text) const;

  /// As Hugging Face's decode(skip_special_tokens=False): always valid UTF-8, with U+FFFD for what
  /// the tokens' bytes leave malformed.
  /// Errors: InvalidArgument - an id that is not in the vocabulary.
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids) const;

  /// The raw bytes that the token stands for: perhaps a part of a character. Empty for unknown ids
  /// (models pad their vocabulary past the tokenizer's).
  absl::string_view TokenBytes(int32_t id) const;

  /// The id of an added token.
  std::optional<int32_t> AddedToken(absl::string_view content) const {
    return added_tokens_.Find(content);
  }

  /// Whether tokenizer.json calls the token special.
  bool IsSpecial(int32_t id) const { return added_tokens_.IsSpecial(id); }

  /// One past the largest id.
  int32_t vocab_size() const { return static_cast<int32_t>(token_bytes_.size()); }

 private:
  Tokenizer(Bpe bpe, PreTokenizer pre_tokenizer, AddedTokens added_tokens,
            std::vector<std::string> token_bytes)
      : bpe_(std::move(bpe)),
        pre_tokenizer_(std::move(pre_tokenizer)),
        added_tokens_(std::move(added_tokens)),
        token_bytes_(std::move(token_bytes)) {}

  const Bpe bpe_;
  const PreTokenizer pre_tokenizer_;
  const AddedTokens added_tokens_;
  const std::vector<std::string> token_bytes_;  // by id; empty: no such token
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_TOKENIZER_H_
