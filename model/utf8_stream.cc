#include "model/utf8_stream.h"

#include <cstdint>
#include <utility>

namespace caravan {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

enum class UnitKind { kCharacter, kMalformed, kUnfinished };

struct Unit {
  UnitKind kind = UnitKind::kCharacter;
  size_t size = 0;  // in bytes, at least 1
};

/// What `text` begins with: a character, bytes that can begin none, or the beginning of one that
/// the text's end cuts off. REQUIRES: !text.empty().
Unit FirstUnit(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {UnitKind::kCharacter, 1};
  if (lead < 0xC2 || lead > 0xF4) return {UnitKind::kMalformed, 1};
  const size_t size = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range shuts out overlong forms, surrogates and what lies past U+10FFFF.
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (size_t i = 1; i < size; ++i) {
    if (i == text.size()) return {UnitKind::kUnfinished, i};
    if (byte(i) < low || byte(i) > high) return {UnitKind::kMalformed, i};
    low = 0x80;
    high = 0xBF;
  }
  return {UnitKind::kCharacter, size};
}

}  // namespace

std::optional<size_t> FindInvalidUtf8(absl::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Unit unit = FirstUnit(text.substr(at));
    if (unit.kind != UnitKind::kCharacter) return at;
    at += unit.size;
  }
  return std::nullopt;
}

std::string Utf8Stream::Push(absl::string_view bytes) {
  std::string joined;  // only when something was held back
  if (!held_.empty()) {
    joined = std::move(held_);
    joined.append(bytes.data(), bytes.size());
    held_.clear();
    bytes = joined;
  }
  std::string text;
  text.reserve(bytes.size());
  size_t copied = 0;  // of bytes, into text
  for (size_t at = 0; at < bytes.size();) {
    const Unit unit = FirstUnit(bytes.substr(at));
    if (unit.kind != UnitKind::kCharacter) {
      text.append(bytes.data() + copied, at - copied);
      copied = at + unit.size;
      if (unit.kind == UnitKind::kUnfinished) {
        held_.assign(bytes.data() + at, unit.size);
      } else {
        text.append(kReplacement.data(), kReplacement.size());
      }
    }
    at += unit.size;
  }
  text.append(bytes.data() + copied, bytes.size() - copied);
  return text;
}

std::string Utf8Stream::Flush() {
  const bool unfinished = !held_.empty();
  held_.clear();
  return unfinished ? std::string(kReplacement) : std::string();
}

}  // namespace caravan
