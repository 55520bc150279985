#ifndef CARAVAN_MODEL_UTF8_STREAM_H_
#define CARAVAN_MODEL_UTF8_STREAM_H_

// UTF-8 that arrives in pieces, and the one place that knows what well-formed UTF-8 is (Unicode
// 15.0, table 3-7).

#include <cstddef>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace caravan {

/// The offset of the first byte that is not part of a whole, well-formed character; nullopt when
/// `text` is valid UTF-8.
std::optional<size_t> FindInvalidUtf8(absl::string_view text);

/// Turns bytes into valid UTF-8. A character split over several pieces is held back until it is
/// whole; each longest malformed beginning of a character becomes one U+FFFD (Unicode 15.0, section
/// 3.9, "substitution of maximal subparts"). How the bytes are cut into pieces does not change the
/// concatenated text. Not thread-safe.
class Utf8Stream {
 public:
  /// The text that became known with `bytes`.
  std::string Push(absl::string_view bytes);

  /// The input has ended: U+FFFD if a character was left unfinished, else nothing. Ready for the
  /// next text.
  std::string Flush();

 private:
  std::string held_;  // the beginning of a character, at most three bytes
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_UTF8_STREAM_H_
