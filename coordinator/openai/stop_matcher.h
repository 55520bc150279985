#ifndef CARAVAN_COORDINATOR_OPENAI_STOP_MATCHER_H_
#define CARAVAN_COORDINATOR_OPENAI_STOP_MATCHER_H_

// Finds stop strings in a text that arrives in pieces. What may be the beginning of one is held
// back until it is known.

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace caravan {

/// Not thread-safe. Takes a time that is linear in the text, for each stop string.
class StopMatcher {
 public:
  /// REQUIRES: no stop string is empty.
  explicit StopMatcher(const std::vector<std::string>& stops);

  /// The text that is now known to stay. Once a stop string is whole, what follows it is dropped,
  /// and so is the string. Where several become whole at the same place, the longest counts.
  std::string Push(absl::string_view text);

  /// Whether a stop string was found.
  bool stopped() const { return stopped_; }

  /// The text has ended, or goes on elsewhere: what was held back. Ready for a new text.
  std::string Flush();

 private:
  /// One string's automaton (Knuth, Morris, Pratt, "Fast pattern matching in strings", 1977).
  struct Pattern {
    std::string text;
    std::vector<size_t> borders;  // [i]: longest proper border of the first i + 1 bytes
    size_t matched = 0;           // longest beginning of `text` that the input ends with
  };

  std::vector<Pattern> patterns_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_STOP_MATCHER_H_
