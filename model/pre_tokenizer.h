#ifndef CARAVAN_MODEL_PRE_TOKENIZER_H_
#define CARAVAN_MODEL_PRE_TOKENIZER_H_

// The `pre_tokenizer` of a Hugging Face tokenizer.json: cuts text into the pieces within which
// byte-pair encoding merges.

#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/regex.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// Immutable, thread-safe.
class PreTokenizer {
 public:
  /// Reads the value of tokenizer.json's "pre_tokenizer": any number of Split, then one ByteLevel,
  /// in a Sequence or alone. `origin` names the file in errors.
  /// Errors: InvalidArgument - malformed, or a type or option that Caravan does not run. Names it.
  static absl::StatusOr<PreTokenizer> Parse(const nlohmann::json& value, absl::string_view origin);

  /// The pieces of `text`, in order, none empty. They are parts of it, so they live as long.
  /// REQUIRES: text is valid UTF-8.
  /// Errors: ResourceExhausted - a pattern took too many steps or too much memory.
  absl::StatusOr<std::vector<absl::string_view>> Split(absl::string_view text) const;

 private:
  /// What becomes of a match of the pattern.
  enum class Behavior {
    kRemoved,             // it is dropped
    kIsolated,            // it is a piece
    kContiguous,          // it is a piece together with the matches right beside it
    kMergedWithPrevious,  // it ends the piece before it
    kMergedWithNext,      // it begins the piece after it
  };
  /// One Split.
  struct Splitter {
    std::variant<std::string, Regex> pattern;  // a string stands for itself
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;  // what lies between the matches counts as the match
  };
  PreTokenizer() = default;
  absl::Status AddStep(const nlohmann::json& value, absl::string_view origin);
  static absl::StatusOr<Splitter> ParseSplitter(const nlohmann::json& value,
                                                absl::string_view origin);
  static absl::Status Apply(const Splitter& splitter, absl::string_view text,
                            std::vector<absl::string_view>& pieces);

  std::vector<Splitter> splitters_;
  bool has_byte_level_ = false;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_PRE_TOKENIZER_H_
