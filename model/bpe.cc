#include "model/bpe.h"

#include <algorithm>
#include <functional>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

using nlohmann::json;

/// Bytes that print as themselves in Latin-1 are spelt so; the others, in ascending order, are
/// U+0100, U+0101, ...
constexpr bool SpellsItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

/// The code point that spells each byte.
constexpr std::array<uint16_t, 256> MakeByteSpellings() {
  std::array<uint16_t, 256> spellings{};
  uint16_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    spellings[byte] = SpellsItself(byte) ? static_cast<uint16_t>(byte) : next++;
  }
  return spellings;
}
constexpr std::array<uint16_t, 256> kByteSpellings = MakeByteSpellings();
constexpr int kNumSpellings = 0x100 + 68;  // one past the largest code point

constexpr std::array<int16_t, kNumSpellings> MakeSpelledBytes() {
  std::array<int16_t, kNumSpellings> bytes{};
  for (int16_t& byte : bytes) byte = -1;
  for (int byte = 0; byte < 256; ++byte) bytes[kByteSpellings[byte]] = static_cast<int16_t>(byte);
  return bytes;
}
constexpr std::array<int16_t, kNumSpellings> kSpelledBytes = MakeSpelledBytes();

/// Fields whose only value that Caravan runs is "off".
absl::Status CheckUnusedOptions(const JsonFields& fields) {
  for (const char* name : {"dropout", "unk_token"}) {
    if (fields.Has(name)) return fields.Error(name, "is set; Caravan runs only tokenizers without");
  }
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    CARAVAN_ASSIGN_OR_RETURN(const std::string value, fields.String(name, ""));
    if (!value.empty()) return fields.Error(name, "is set; Caravan runs only tokenizers without");
  }
  for (const char* name : {"fuse_unk", "byte_fallback"}) {
    CARAVAN_ASSIGN_OR_RETURN(const bool value, fields.Bool(name, false));
    if (value) return fields.Error(name, "is true; Caravan runs only tokenizers without");
  }
  return absl::OkStatus();
}

/// The two sides of a merge, in either spelling: "a b" or ["a", "b"]. Nullopt when it is neither.
std::optional<std::pair<absl::string_view, absl::string_view>> SplitMerge(const json& merge) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return std::pair<absl::string_view, absl::string_view>(merge[0].get_ref<const std::string&>(),
                                                           merge[1].get_ref<const std::string&>());
  }
  if (!merge.is_string()) return std::nullopt;
  const absl::string_view text = merge.get_ref<const std::string&>();
  const size_t space = text.find(' ');
  if (space == absl::string_view::npos || text.find(' ', space + 1) != absl::string_view::npos) {
    return std::nullopt;
  }
  return std::pair(text.substr(0, space), text.substr(space + 1));
}

}  // namespace

std::string SpellingOfByte(int byte) {
  const uint16_t point = kByteSpellings[byte];
  if (point < 0x80) return std::string(1, static_cast<char>(point));
  return {static_cast<char>(0xC0 | point >> 6), static_cast<char>(0x80 | (point & 0x3F))};
}

std::string BytesOfSpelling(absl::string_view spelling) {
  std::string bytes;
  bytes.reserve(spelling.size());
  for (size_t i = 0; i < spelling.size(); ++i) {
    uint32_t point = static_cast<uint8_t>(spelling[i]);
    if (point >= 0x80) {  // all that stand for bytes and are not ASCII take two bytes of UTF-8
      if (point < 0xC2 || point > 0xDF || i + 1 == spelling.size()) return std::string(spelling);
      point = (point & 0x1F) << 6 | (static_cast<uint8_t>(spelling[++i]) & 0x3F);
    }
    if (point >= kNumSpellings || kSpelledBytes[point] < 0) return std::string(spelling);
    bytes.push_back(static_cast<char>(kSpelledBytes[point]));
  }
  return bytes;
}

absl::StatusOr<Bpe> Bpe::Parse(const json& model, absl::string_view origin) {
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(model, origin));
  CARAVAN_ASSIGN_OR_RETURN(const std::string type, fields.String("type", "BPE"));
  if (type != "BPE") {
    return fields.Error("type", absl::StrCat("is \"", type, "\"; Caravan runs only \"BPE\""));
  }
  CARAVAN_RETURN_IF_ERROR(CheckUnusedOptions(fields));
  CARAVAN_ASSIGN_OR_RETURN(const bool ignore_merges, fields.Bool("ignore_merges", false));
  CARAVAN_RETURN_IF_ERROR(fields.Object("vocab").status());
  CARAVAN_ASSIGN_OR_RETURN(const json* const merges, fields.Array("merges"));

  Bpe bpe;
  CARAVAN_RETURN_IF_ERROR(bpe.ReadVocab(model["vocab"], origin));
  CARAVAN_RETURN_IF_ERROR(bpe.ReadMerges(*merges, origin));
  if (ignore_merges) {
    bpe.whole_pieces_.emplace();
    for (const auto& [spelling, id] : bpe.vocab_) {
      bpe.whole_pieces_->emplace(BytesOfSpelling(spelling), id);
    }
  }
  return bpe;
}

absl::Status Bpe::ReadVocab(const json& vocab, absl::string_view origin) {
  const auto error = [&](absl::string_view token, absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": field \"vocab\": token \"", token, "\" ", what));
  };
  vocab_.reserve(vocab.size());
  absl::flat_hash_set<int32_t> seen;
  seen.reserve(vocab.size());
  for (const auto& [spelling, value] : vocab.items()) {
    if (spelling.empty()) return error(spelling, "is empty");
    // An unsigned number past 2^63 reads as negative here.
    const int64_t id = value.is_number_integer() ? value.get<int64_t>() : -1;
    if (id < 0 || id >= kMaxVocabSize) {
      return error(spelling, absl::StrCat("must have an integer from 0 to ", kMaxVocabSize - 1));
    }
    if (!seen.insert(static_cast<int32_t>(id)).second) {
      return error(spelling, absl::StrCat("repeats the id ", id));
    }
    vocab_.emplace(spelling, static_cast<int32_t>(id));
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto it = vocab_.find(SpellingOfByte(byte));
    if (it == vocab_.end()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: field \"vocab\" has no token for byte 0x%02X", origin, byte));
    }
    byte_ids_[byte] = it->second;
  }
  return absl::OkStatus();
}

absl::Status Bpe::ReadMerges(const json& merges, absl::string_view origin) {
  merges_.reserve(merges.size());
  std::string whole;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto error = [&](absl::string_view what) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ": field \"merges\": merge ", rank, " ", what));
    };
    const auto sides = SplitMerge(merges[rank]);
    if (!sides.has_value()) return error("must be \"left right\" or [\"left\", \"right\"]");
    whole = absl::StrCat(sides->first, sides->second);
    std::array<int32_t, 3> ids{};
    const std::array<absl::string_view, 3> names = {sides->first, sides->second, whole};
    for (size_t i = 0; i < names.size(); ++i) {
      const auto it = vocab_.find(names[i]);
      if (it == vocab_.end()) {
        return error(absl::StrCat(i == 2 ? "makes" : "names", " the token \"", names[i],
                                  "\", which is not in the vocabulary"));
      }
      ids[i] = it->second;
    }
    merges_[PairKey(ids[0], ids[1])] = {static_cast<int32_t>(rank), ids[2]};
  }
  return absl::OkStatus();
}

void Bpe::Encode(absl::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.empty()) return;
  if (whole_pieces_.has_value()) {
    if (const auto it = whole_pieces_->find(piece); it != whole_pieces_->end()) {
      ids.push_back(it->second);
      return;
    }
  }
  // A doubly linked list over the piece's bytes; a merge puts its result into the left place and
  // unlinks the right one. A candidate in the queue whose places have changed since is stale.
  struct Place {
    int32_t id;  // -1: merged away
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    int32_t rank;
    int32_t left;  // place
    int32_t result;
    int32_t right;
    int32_t left_id;
    int32_t right_id;
    bool operator>(const Candidate& other) const {
      return std::tie(rank, left) > std::tie(other.rank, other.left);
    }
  };
  const int32_t size = static_cast<int32_t>(piece.size());
  std::vector<Place> places(piece.size());
  for (int32_t i = 0; i < size; ++i) {
    places[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], i - 1, i + 1 == size ? -1 : i + 1};
  }
  std::vector<Candidate> candidates;
  const auto consider = [&](int32_t left) {
    const int32_t right = left < 0 ? -1 : places[left].next;
    if (right < 0) return false;
    const auto it = merges_.find(PairKey(places[left].id, places[right].id));
    if (it == merges_.end()) return false;
    candidates.push_back(
        {it->second.rank, left, it->second.result, right, places[left].id, places[right].id});
    return true;
  };
  for (int32_t i = 0; i < size; ++i) consider(i);
  std::make_heap(candidates.begin(), candidates.end(), std::greater<>());
  const auto push = [&](int32_t left) {
    if (consider(left)) std::push_heap(candidates.begin(), candidates.end(), std::greater<>());
  };
  while (!candidates.empty()) {
    std::pop_heap(candidates.begin(), candidates.end(), std::greater<>());
    const Candidate top = candidates.back();
    candidates.pop_back();
    Place& left = places[top.left];
    Place& right = places[top.right];
    if (left.id != top.left_id || left.next != top.right || right.id != top.right_id) continue;
    left.id = top.result;
    left.next = right.next;
    right.id = -1;
    if (right.next >= 0) places[right.next].previous = top.left;
    push(left.previous);
    push(top.left);
  }
  for (int32_t i = 0; i >= 0; i = places[i].next) ids.push_back(places[i].id);
}

}  // namespace caravan
