#include "model/added_tokens.h"

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "model/bpe.h"

namespace caravan {

using nlohmann::json;

absl::StatusOr<AddedTokens> AddedTokens::Parse(
    const json& tokens, const absl::flat_hash_map<std::string, int32_t>& vocab,
    absl::string_view origin) {
  AddedTokens added;
  absl::flat_hash_map<int32_t, absl::string_view> content_of;  // the vocabulary's, then ours
  content_of.reserve(vocab.size() + tokens.size());
  for (const auto& [content, id] : vocab) content_of.emplace(id, content);
  for (size_t i = 0; i < tokens.size(); ++i) {
    CARAVAN_ASSIGN_OR_RETURN(
        const JsonFields fields,
        JsonFields::Of(tokens[i], absl::StrCat(origin, ": added_tokens[", i, "]")));
    CARAVAN_ASSIGN_OR_RETURN(const int64_t wide_id, fields.Int("id", 0, kMaxVocabSize - 1));
    const int32_t id = static_cast<int32_t>(wide_id);
    CARAVAN_ASSIGN_OR_RETURN(const std::string content, fields.String("content"));
    if (content.empty()) return fields.Error("content", "must not be empty");
    CARAVAN_ASSIGN_OR_RETURN(const bool special, fields.Bool("special", false));
    CARAVAN_ASSIGN_OR_RETURN(const bool normalized, fields.Bool("normalized", !special));
    for (const char* name : {"single_word", "lstrip", "rstrip"}) {
      CARAVAN_ASSIGN_OR_RETURN(const bool value, fields.Bool(name, false));
      if (value) return fields.Error(name, "is true, which Caravan does not run");
    }
    const auto [token, is_new] = added.ids_.emplace(content, id);
    if (!is_new) return fields.Error("content", absl::StrCat("repeats \"", content, "\""));
    const auto known = vocab.find(content);
    if (known == vocab.end() ? content_of.contains(id) : known->second != id) {
      return fields.Error("id",
                          absl::StrCat(id, " of \"", content, "\" clashes with another token"));
    }
    content_of.emplace(id, known == vocab.end() ? absl::string_view("") : known->first);
    if (special) added.special_.insert(id);
    (normalized ? added.normalized_ : added.as_written_).Add(content, id);
  }
  return added;
}

std::optional<int32_t> AddedTokens::Find(absl::string_view content) const {
  const auto it = ids_.find(content);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

std::vector<AddedTokens::Segment> AddedTokens::Split(absl::string_view text) const {
  std::vector<Segment> coarse;
  as_written_.Split(text, coarse);
  std::vector<Segment> segments;
  for (const Segment& segment : coarse) {
    if (segment.id.has_value()) {
      segments.push_back(segment);
    } else {
      normalized_.Split(segment.text, segments);
    }
  }
  return segments;
}

void AddedTokens::Trie::Add(absl::string_view content, int32_t id) {
  uint32_t node = 0;
  for (const char byte : content) {
    const auto [edge, is_new] =
        edges_.emplace(EdgeKey(node, byte), static_cast<uint32_t>(ids_.size()));
    if (is_new) ids_.emplace_back();
    node = edge->second;
  }
  ids_[node] = id;
}

AddedTokens::Segment AddedTokens::Trie::LongestPrefix(absl::string_view text) const {
  Segment longest;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto edge = edges_.find(EdgeKey(node, text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (ids_[node].has_value()) longest = {text.substr(0, i + 1), ids_[node]};
  }
  return longest;
}

void AddedTokens::Trie::Split(absl::string_view text, std::vector<Segment>& segments) const {
  size_t begin = 0;  // of what is in no segment yet
  for (size_t at = 0; at < text.size();) {
    const Segment token = LongestPrefix(text.substr(at));
    if (token.text.empty()) {
      ++at;
      continue;
    }
    if (begin < at) segments.push_back({text.substr(begin, at - begin), std::nullopt});
    segments.push_back(token);
    at += token.text.size();
    begin = at;
  }
  if (begin < text.size()) segments.push_back({text.substr(begin), std::nullopt});
}

}  // namespace caravan
