#include "model/gguf/gguf_tokenizer.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/bpe.h"
#include "nlohmann/json.hpp"

namespace caravan {
namespace {

using nlohmann::json;

constexpr char kModel[] = "tokenizer.ggml.model";
constexpr char kPre[] = "tokenizer.ggml.pre";
constexpr char kTokens[] = "tokenizer.ggml.tokens";
constexpr char kTokenTypes[] = "tokenizer.ggml.token_type";
constexpr char kMerges[] = "tokenizer.ggml.merges";

/// Of tokenizer.ggml.token_type.
enum TokenType : int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,  // of tokenizers that are no byte-level BPE
};

// Each cuts what the one before it left; a match is a piece. The patterns of the published
// tokenizer.json files.

const std::vector<std::string>& DeepSeekV3Patterns() {
  static const auto& patterns = *new std::vector<std::string>{
      R"(\p{N}{1,3})",
      "[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+",  // Chinese, Hiragana, Katakana
      R"re([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+)re"
      "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
      "| ?[\\p{P}\\p{S}]+[\r\n]*"
      "|\\s*[\r\n]+"
      R"(|\s+(?!\S)|\s+)",
  };
  return patterns;
}

/// The letters that have cases, of the Unicode of the day.
constexpr absl::string_view kCasedLetters =
    "A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293"
    "\u0295-\u02AF\u0370-\u0373\u0376\u0377\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C"
    "\u038E-\u03A1\u03A3-\u03F5\u03F7-\u0481\u048A-\u052F\u0531-\u0556\u10A0-\u10C5"
    "\u13A0-\u13F5\u13F8-\u13FD\u1C90-\u1CBA\u1CBD-\u1CBF\u1D00-\u1D2B\u1D6B-\u1D77"
    "\u1D79-\u1D9A\u1E00-\u1F15\u1F18-\u1F1D\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59"
    "\u1F5B\u1F5D\u1F5F-\u1F7D\u1F80-\u1FB4\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC"
    "\u1FD0-\u1FD3\u1FD6-\u1FDB\u1FE0-\u1FEC\u1FF2-\u1FF4\u1FF6-\u1FFC\u2102\u2107"
    "\u210A-\u2113\u2115\u2119-\u211D\u2124\u2126\u2128\u212A-\u212D\u212F-\u2134\u2139"
    "\u213C-\u213F\u2145-\u2149\u214E\u2183\u2184\u2C00-\u2C7B\u2C7E-\u2CE4\u2CEB-\u2CEE"
    "\u2CF2\u2CF3\uA640-\uA66D\uA680-\uA69B\uA722-\uA76F\uA771-\uA787\uA78B-\uA78E"
    "\uAB70-\uABBF\uFB00-\uFB06\uFB13-\uFB17\uFF21-\uFF3A\uFF41-\uFF5A\U00010400-\U0001044F"
    "\U000104B0-\U000104D3\U000104D8-\U000104FB\U00010C80-\U00010CB2\U00010CC0-\U00010CF2"
    "\U000118A0-\U000118DF\U0001E900-\U0001E943";

const std::vector<std::string>& DeepSeekLlmPatterns() {
  static const auto& patterns = *new std::vector<std::string>{
      "[\r\n]",
      absl::StrCat(R"(\s?[)", kCasedLetters, "]+"),
      "\\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3000-\u3002]+",
      R"(\s+$)",
      "[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+",
      R"(\p{N})",  // there as Digits with individual_digits, which is the same
  };
  return patterns;
}

absl::Status NotRun(const GgufMetadata& metadata, absl::string_view key, absl::string_view value,
                    absl::string_view what_is_run) {
  return absl::UnimplementedError(
      metadata.Error(key, absl::StrCat("is \"", value, "\", but Caravan runs only ", what_is_run))
          .message());
}

absl::StatusOr<json> PreTokenizer(const GgufMetadata& metadata) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string pre, metadata.String(kPre));
  if (pre != "deepseek-v3" && pre != "deepseek-llm") {
    return NotRun(metadata, kPre, pre, "deepseek-v3 and deepseek-llm");
  }
  json steps = json::array();
  for (const std::string& pattern :
       pre == "deepseek-v3" ? DeepSeekV3Patterns() : DeepSeekLlmPatterns()) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back({{"type", "ByteLevel"},
                   {"add_prefix_space", false},
                   {"trim_offsets", true},
                   {"use_regex", false}});
  return json({{"type", "Sequence"}, {"pretokenizers", std::move(steps)}});
}

struct Vocabulary {
  json vocab = json::object();
  json added_tokens = json::array();
};

absl::StatusOr<Vocabulary> ReadVocabulary(const GgufMetadata& metadata) {
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<absl::string_view> tokens, metadata.Strings(kTokens));
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<int64_t> types, metadata.Ints(kTokenTypes));
  if (tokens.size() > static_cast<size_t>(kMaxVocabSize)) {
    return metadata.Error(kTokens, absl::StrCat("has ", tokens.size(), " elements; at most ",
                                                kMaxVocabSize, " are read"));
  }
  if (types.size() != tokens.size()) {
    return metadata.Error(kTokenTypes, absl::StrCat("has ", types.size(), " elements, but ",
                                                    kTokens, " has ", tokens.size()));
  }
  Vocabulary vocabulary;
  absl::flat_hash_set<absl::string_view> seen;
  seen.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (types[id] == kUnused) continue;
    if (types[id] < kNormal || types[id] >= kByte) {
      return metadata.Error(kTokenTypes, absl::StrCat("is ", types[id], " for token ", id,
                                                      ", which byte-level BPE has not"));
    }
    if (tokens[id].empty() || !seen.insert(tokens[id]).second) {
      return metadata.Error(kTokens, absl::StrCat(tokens[id].empty() ? "is empty" : "is repeated",
                                                  " at element ", id));
    }
    // Added ones too: a merge may name them.
    const std::string token(tokens[id]);
    vocabulary.vocab[token] = id;
    if (types[id] == kNormal) continue;
    const bool special = types[id] != kUserDefined;
    vocabulary.added_tokens.push_back({{"id", id},
                                       {"content", token},
                                       {"single_word", false},
                                       {"lstrip", false},
                                       {"rstrip", false},
                                       {"normalized", !special},
                                       {"special", special}});
  }
  return vocabulary;
}

}  // namespace

absl::StatusOr<std::string> GgufTokenizerJson(const GgufMetadata& metadata) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string model, metadata.String(kModel));
  if (model != "gpt2") {
    return NotRun(metadata, kModel, model, "gpt2 (byte-level BPE)");
  }
  CARAVAN_ASSIGN_OR_RETURN(json pre_tokenizer, PreTokenizer(metadata));
  CARAVAN_ASSIGN_OR_RETURN(Vocabulary vocabulary, ReadVocabulary(metadata));
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<absl::string_view> views, metadata.Strings(kMerges));

  const std::vector<std::string> merges(views.begin(), views.end());
  json bpe = {{"type", "BPE"}, {"vocab", std::move(vocabulary.vocab)}, {"merges", merges}};
  const json file = {
      {"version", "1.0"},
      {"added_tokens", std::move(vocabulary.added_tokens)},
      {"pre_tokenizer", std::move(pre_tokenizer)},
      {"decoder",
       {{"type", "ByteLevel"},
        {"add_prefix_space", true},
        {"trim_offsets", true},
        {"use_regex", true}}},
      {"model", std::move(bpe)},
  };
  return file.dump();
}

absl::StatusOr<std::string> GgufTokenizerConfigJson(const GgufMetadata& metadata) {
  json file = json::object();
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<absl::string_view> tokens, metadata.Strings(kTokens));
  for (const auto& [key, field] : {std::pair{"tokenizer.ggml.bos_token_id", "bos_token"},
                                   std::pair{"tokenizer.ggml.eos_token_id", "eos_token"}}) {
    if (!metadata.Has(key)) continue;
    CARAVAN_ASSIGN_OR_RETURN(const int64_t id,
                             metadata.Int(key, 0, static_cast<int64_t>(tokens.size()) - 1));
    file[field] = std::string(tokens[static_cast<size_t>(id)]);
  }
  constexpr char kAddBos[] = "tokenizer.ggml.add_bos_token";
  if (metadata.Has(kAddBos)) {
    CARAVAN_ASSIGN_OR_RETURN(file["add_bos_token"], metadata.Bool(kAddBos));
  }
  constexpr char kChatTemplate[] = "tokenizer.chat_template";
  if (metadata.Has(kChatTemplate)) {
    CARAVAN_ASSIGN_OR_RETURN(file["chat_template"], metadata.String(kChatTemplate));
  }
  return file.dump();
}

}  // namespace caravan
