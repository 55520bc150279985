#include "cli/stand_in_tokenizer.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "model/bpe.h"
#include "nlohmann/json.hpp"

namespace caravan {
namespace {

using nlohmann::json;

constexpr int64_t kLeastVocab = 256 + 4;

constexpr char kBegin[] = "<｜begin▁of▁sentence｜>";
constexpr char kEnd[] = "<｜end▁of▁sentence｜>";
constexpr char kUser[] = "<｜User｜>";
constexpr char kAssistant[] = "<｜Assistant｜>";

json AddedToken(int32_t id, const char* content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

}  // namespace

bool NeedsStandIn(const StoredModel& model) {
  return absl::IsNotFound(model.ReadText("tokenizer.json").status());
}

absl::StatusOr<StandInTokenizer> MakeStandInTokenizer(const ModelConfig& config) {
  const int32_t begin = config.bos_token_id;
  const int32_t end = config.eos_token_ids[0];
  if (config.vocab_size < kLeastVocab || begin == end) {
    return absl::InvalidArgumentError(
        absl::StrCat("a stand-in for the tokenizer takes a vocabulary of ", kLeastVocab,
                     " tokens or more, and two for the beginning and the end"));
  }
  // The lowest ids that the config does not name.
  int32_t next = 0;
  const auto take = [&] {
    while (next == begin || next == end) ++next;
    return next++;
  };
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[SpellingOfByte(byte)] = take();
  json added = {AddedToken(begin, kBegin), AddedToken(end, kEnd)};
  for (const char* mark : {kUser, kAssistant}) added.push_back(AddedToken(take(), mark));
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  const json tokenizer = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", json::array({byte_level})}}},
      {"decoder", byte_level},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
  const json text = {
      {"bos_token", kBegin},
      {"eos_token", kEnd},
      {"chat_template", absl::StrCat("{{ '", kUser, "' }}{{ '", kAssistant, "' }}")}};
  return StandInTokenizer{tokenizer.dump(), text.dump()};
}

}  // namespace caravan
