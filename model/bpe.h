#ifndef CARAVAN_MODEL_BPE_H_
#define CARAVAN_MODEL_BPE_H_

// Byte-level byte-pair encoding: the `model` of a Hugging Face tokenizer.json. Its vocabulary
// spells each byte as a printable character (GPT-2's alphabet).

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// Past any model's vocabulary; bounds what a broken file can make us allocate.
inline constexpr int32_t kMaxVocabSize = 1 << 21;

/// How a vocabulary spells the byte.
std::string SpellingOfByte(int byte);

/// The bytes that a token's spelling stands for. A spelling with a character that stands for no
/// byte is text as it is: some special tokens are.
std::string BytesOfSpelling(absl::string_view spelling);

/// Immutable, thread-safe.
class Bpe {
 public:
  /// Reads the value of tokenizer.json's "model". `origin` names the file in errors.
  /// Errors: InvalidArgument - not BPE; an option that Caravan does not run (dropout,
  ///         byte_fallback, fuse_unk, unk_token, a prefix or suffix of subwords); an id that is
  ///         repeated, negative or past kMaxVocabSize; a byte without a token; a merge that is
  ///         malformed or names (or makes) an unknown token. Each names the field.
  static absl::StatusOr<Bpe> Parse(const nlohmann::json& model, absl::string_view origin);

  /// Appends the tokens of one pre-tokenized piece of text: neighbours are merged, the earliest
  /// merge of the list first, leftmost first, until none is left. O(n log n) in its bytes.
  void Encode(absl::string_view piece, std::vector<int32_t>& ids) const;

  /// By spelling.
  const absl::flat_hash_map<std::string, int32_t>& vocab() const { return vocab_; }

 private:
  struct Merge {
    int32_t rank = 0;    // place in the list
    int32_t result = 0;  // token id
  };
  Bpe() = default;
  static uint64_t PairKey(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  absl::Status ReadVocab(const nlohmann::json& vocab, absl::string_view origin);
  absl::Status ReadMerges(const nlohmann::json& merges, absl::string_view origin);

  absl::flat_hash_map<std::string, int32_t> vocab_;
  std::array<int32_t, 256> byte_ids_{};  // the token of each single byte
  absl::flat_hash_map<uint64_t, Merge> merges_;
  /// With ignore_merges: a piece that is a token as a whole is that token. By bytes.
  std::optional<absl::flat_hash_map<std::string, int32_t>> whole_pieces_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_BPE_H_
