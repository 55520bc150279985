#include "model/tokenizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "model/utf8_stream.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr int64_t kMaxFileBytes = int64_t{64} << 20;  // the largest in the wild are half of it
constexpr size_t kMaxTextBytes = size_t{1} << 30;

/// The parts of tokenizer.json whose only value that Caravan runs is "off", and the decoder.
absl::Status CheckPipeline(const json& file, const JsonFields& fields) {
  if (fields.Has("normalizer")) {
    CARAVAN_ASSIGN_OR_RETURN(const JsonFields normalizer, fields.Object("normalizer"));
    CARAVAN_ASSIGN_OR_RETURN(const std::string type, normalizer.String("type"));
    const json empty = json::array();
    if (type != "Sequence" || file["normalizer"].value("normalizers", empty) != empty) {
      return fields.Error("normalizer", absl::StrCat("of type \"", type, "\" changes the text, ",
                                                     "which Caravan does not run"));
    }
  }
  for (const char* name : {"truncation", "padding"}) {
    if (fields.Has(name)) return fields.Error(name, "is set, which Caravan does not run");
  }
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields decoder, fields.Object("decoder"));
  CARAVAN_ASSIGN_OR_RETURN(const std::string type, decoder.String("type"));
  if (type != "ByteLevel") {
    return decoder.Error("type", absl::StrCat("is \"", type, "\"; Caravan runs only ByteLevel"));
  }
  return absl::OkStatus();
}

std::vector<std::string> MakeTokenBytes(const Bpe& bpe, const AddedTokens& added_tokens) {
  std::vector<std::string> token_bytes;
  for (const auto* spellings : {&bpe.vocab(), &added_tokens.ids()}) {
    for (const auto& [spelling, id] : *spellings) {
      const size_t index = static_cast<size_t>(id);
      if (token_bytes.size() <= index) token_bytes.resize(index + 1);
      token_bytes[index] = BytesOfSpelling(spelling);
    }
  }
  return token_bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  return Parse(text, path);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(absl::string_view text,
                                                            absl::string_view origin) {
  CARAVAN_ASSIGN_OR_RETURN(const json file, ParseJson(text, origin));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(file, origin));
  CARAVAN_RETURN_IF_ERROR(fields.Object("model").status());
  CARAVAN_ASSIGN_OR_RETURN(Bpe bpe, Bpe::Parse(file["model"], absl::StrCat(origin, ": model")));
  CARAVAN_RETURN_IF_ERROR(CheckPipeline(file, fields));
  CARAVAN_RETURN_IF_ERROR(fields.Object("pre_tokenizer").status());
  CARAVAN_ASSIGN_OR_RETURN(
      PreTokenizer pre_tokenizer,
      PreTokenizer::Parse(file["pre_tokenizer"], absl::StrCat(origin, ": pre_tokenizer")));
  const json none = json::array();
  const json* added = &none;
  if (fields.Has("added_tokens")) {
    CARAVAN_ASSIGN_OR_RETURN(added, fields.Array("added_tokens"));
  }
  CARAVAN_ASSIGN_OR_RETURN(AddedTokens added_tokens,
                           AddedTokens::Parse(*added, bpe.vocab(), origin));
  std::vector<std::string> token_bytes = MakeTokenBytes(bpe, added_tokens);
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(bpe), std::move(pre_tokenizer),
                                                  std::move(added_tokens), std::move(token_bytes)));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the text has ", text.size(), " bytes; at most ",
                                                   kMaxTextBytes, " are encoded at once"));
  }
  if (const std::optional<size_t> offset = FindInvalidUtf8(text)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text is not valid UTF-8 at byte ", *offset));
  }
  std::vector<int32_t> ids;
  for (const AddedTokens::Segment& segment : added_tokens_.Split(text)) {
    if (segment.id.has_value()) {
      ids.push_back(*segment.id);
      continue;
    }
    CARAVAN_ASSIGN_OR_RETURN(const std::vector<absl::string_view> pieces,
                             pre_tokenizer_.Split(segment.text));
    for (const absl::string_view piece : pieces) bpe_.Encode(piece, ids);
  }
  return ids;
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const int32_t> ids) const {
  Utf8Stream stream;
  std::string text;
  for (const int32_t id : ids) {
    const absl::string_view bytes = TokenBytes(id);
    if (bytes.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("token id ", id, " is not in the vocabulary"));
    }
    text += stream.Push(bytes);
  }
  return text + stream.Flush();
}

absl::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return token_bytes_[static_cast<size_t>(id)];
}

}  // namespace caravan
