#ifndef CARAVAN_MODEL_ADDED_TOKENS_H_
#define CARAVAN_MODEL_ADDED_TOKENS_H_

// The `added_tokens` of a Hugging Face tokenizer.json: tokens that are found in the text as they
// are spelt, before anything else happens to it (<think>, <｜User｜>, ...).

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// Immutable, thread-safe.
class AddedTokens {
 public:
  /// A part of a text: one added token, or what lies between two.
  struct Segment {
    absl::string_view text;
    std::optional<int32_t> id;  // nullopt: no added token
  };

  /// Reads the value of tokenizer.json's "added_tokens". `vocab` is the model's own: a token may
  /// stand in both, under one id.
  /// Errors: InvalidArgument - malformed; an id or content that is repeated, or taken by another
  ///         token of `vocab`; lstrip, rstrip or single_word, which Caravan does not run.
  static absl::StatusOr<AddedTokens> Parse(const nlohmann::json& tokens,
                                           const absl::flat_hash_map<std::string, int32_t>& vocab,
                                           absl::string_view origin);

  /// Cuts `text` at its added tokens: the leftmost first, at one place the longest. Those that are
  /// not `normalized` go before the others. No segment is empty.
  std::vector<Segment> Split(absl::string_view text) const;

  std::optional<int32_t> Find(absl::string_view content) const;
  bool IsSpecial(int32_t id) const { return special_.contains(id); }
  const absl::flat_hash_map<std::string, int32_t>& ids() const { return ids_; }

 private:
  /// A trie of the tokens of one pass.
  class Trie {
   public:
    void Add(absl::string_view content, int32_t id);
    /// Appends the segments of `text`.
    void Split(absl::string_view text, std::vector<Segment>& segments) const;

   private:
    static uint64_t EdgeKey(uint32_t node, char byte) {
      return uint64_t{node} << 8 | static_cast<uint8_t>(byte);
    }
    /// The longest token that `text` begins with; an empty segment when none does.
    Segment LongestPrefix(absl::string_view text) const;

    absl::flat_hash_map<uint64_t, uint32_t> edges_;  // EdgeKey to the node below
    std::vector<std::optional<int32_t>> ids_ = {
        std::nullopt};  // by node: the token that ends there
  };

  AddedTokens() = default;

  absl::flat_hash_map<std::string, int32_t> ids_;  // by content
  absl::flat_hash_set<int32_t> special_;
  Trie as_written_;  // not normalized
  Trie normalized_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_ADDED_TOKENS_H_
