#ifndef CARAVAN_MODEL_REGEX_H_
#define CARAVAN_MODEL_REGEX_H_

// The regular expressions of tokenizer.json, which are written for Oniguruma, run by PCRE2.

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

// PCRE2's compiled pattern (pcre2_code is a macro for this name with 8-bit code units).
struct pcre2_real_code_8;

namespace caravan {

/// A half-open range of bytes.
struct ByteRange {
  size_t begin = 0;
  size_t end = 0;
  friend bool operator==(const ByteRange&, const ByteRange&) = default;
};

/// Immutable, thread-safe.
///
/// What both libraries read alike is accepted: literals, classes, groups, look-around, alternation,
/// repetition, general categories (\p{L}), \s \S \d \D. \s is Unicode's White_Space, as Oniguruma
/// has it. The rest (\w and \b, scripts, && and nested classes, back-references, ignoring case) is
/// refused, since the two may differ there; so is a pattern that can match nothing.
class Regex {
 public:
  /// Errors: InvalidArgument - not valid, or it uses what Caravan does not run. Says where.
  static absl::StatusOr<Regex> Compile(absl::string_view pattern);

  /// Its matches in `text`, from left to right, not overlapping, none empty.
  /// REQUIRES: text is valid UTF-8.
  /// Errors: ResourceExhausted - the search took too many steps or too much memory.
  absl::StatusOr<std::vector<ByteRange>> FindAll(absl::string_view text) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  explicit Regex(pcre2_real_code_8* code) : code_(code) {}

  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_REGEX_H_
