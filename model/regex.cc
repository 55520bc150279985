#include "model/regex.h"

#include <cstdint>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/free_with.h"
#include "base/status_macros.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace caravan {
namespace {

// Steps of one search: a backstop against patterns that backtrack without end, far above what a
// pattern that looks at each byte a few times needs.
constexpr uint32_t kMatchLimit = 200'000'000;
constexpr uint32_t kHeapLimitKiB = 1 << 20;
constexpr size_t kJitStackBytes = size_t{1} << 20;

// Unicode's White_Space. PCRE2's own \s also has U+180E, which left that property in Unicode 6.3.
constexpr absl::string_view kWhiteSpace =
    "\\x{09}-\\x{0D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"
    "\\x{205F}\\x{3000}";

absl::Status Unsupported(absl::string_view what, size_t at) {
  return absl::InvalidArgumentError(
      absl::StrCat("Caravan does not run ", what, " in a regular expression (byte ", at, ")"));
}

/// Rewrites an Oniguruma pattern in PCRE2's terms, or refuses it.
class Translator {
 public:
  explicit Translator(absl::string_view pattern) : in_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        CARAVAN_RETURN_IF_ERROR(Escape());
      } else if (in_class_) {
        CARAVAN_RETURN_IF_ERROR(InClass());
      } else if (c == '[') {
        in_class_ = true;
        Copy(in_.substr(at_, 2) == "[^" ? 2 : 1);
        if (Next(0) == ']') return Unsupported("an unescaped ] at a class's start", at_);
      } else if (c == '(') {
        CARAVAN_RETURN_IF_ERROR(Group());
      } else if (c == '{') {
        CARAVAN_RETURN_IF_ERROR(Repetition());
      } else {
        Copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  char Next(size_t ahead) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  void Copy(size_t bytes) {
    absl::StrAppend(&out_, in_.substr(at_, bytes));
    at_ += bytes;
  }

  absl::Status Escape() {
    const char c = Next(1);
    if (c == 's' || (c == 'S' && !in_class_)) {
      absl::StrAppend(&out_,
                      in_class_  ? ""
                      : c == 's' ? "["
                                 : "[^",
                      kWhiteSpace, in_class_ ? "" : "]");
      at_ += 2;
      return absl::OkStatus();
    }
    if (c == 'p' || c == 'P') {
      const size_t close = in_.find('}', at_);
      if (Next(2) != '{' || close == absl::string_view::npos)
        return Unsupported("\\p without {}", at_);
      // One or two letters are a general category; longer names are scripts and the like.
      absl::string_view name = in_.substr(at_ + 3, close - at_ - 3);
      if (!name.empty() && name[0] == '^') name.remove_prefix(1);
      if (name.empty() || name.size() > 2 || !absl::ascii_isupper(name[0]) ||
          (name.size() == 2 && !absl::ascii_islower(name[1]))) {
        return Unsupported(absl::StrCat("\\p{", name, "}"), at_);
      }
      Copy(close + 1 - at_);
      return absl::OkStatus();
    }
    if (absl::ascii_isalnum(c) && absl::string_view("dDrntf").find(c) == absl::string_view::npos) {
      return Unsupported(absl::StrCat("\\", std::string(1, c)), at_);
    }
    if (c == '\0' || !absl::ascii_isascii(c)) return Unsupported("a stray backslash", at_);
    Copy(2);
    return absl::OkStatus();
  }

  absl::Status InClass() {
    if (Next(0) == '[') return Unsupported("a class within a class", at_);
    if (Next(0) == '&' && Next(1) == '&') return Unsupported("&&", at_);
    if (Next(0) == ']') in_class_ = false;
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Group() {
    if (Next(1) == '*') return Unsupported("(*", at_);
    if (Next(1) != '?') {
      Copy(1);
      return absl::OkStatus();
    }
    for (const absl::string_view opening : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"}) {
      if (in_.substr(at_, opening.size()) == opening) {
        Copy(opening.size());
        return absl::OkStatus();
      }
    }
    return Unsupported(absl::StrCat("the group ", in_.substr(at_, 3)), at_);
  }

  absl::Status Repetition() {
    const size_t close = in_.find('}', at_);
    if (!absl::ascii_isdigit(Next(1)) || close == absl::string_view::npos) {
      return Unsupported("an unescaped { that is not {n}, {n,} or {n,m}", at_);
    }
    // {n,m}+ is possessive in one of the two libraries only, {n}? lazy likewise.
    Copy(close + 1 - at_);
    if (Next(0) == '+' || Next(0) == '?') return Unsupported("{} followed by + or ?", at_);
    return absl::OkStatus();
  }

  const absl::string_view in_;
  size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

std::string Pcre2Message(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

using MatchData = std::unique_ptr<pcre2_match_data, FreeWith<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, FreeWith<pcre2_match_context_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, FreeWith<pcre2_compile_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, FreeWith<pcre2_jit_stack_free>>;

}  // namespace

void Regex::FreeCode::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

absl::StatusOr<Regex> Regex::Compile(absl::string_view pattern) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string translated, Translator(pattern).Run());
  const CompileContext context(pcre2_compile_context_create(nullptr));
  CARAVAN_CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  // Oniguruma's ^ and $ are always those of lines.
  Regex regex(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                            &error, &error_offset, context.get()));
  if (regex.code_ == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("not a valid regular expression: ", Pcre2Message(error)));
  }
  uint32_t matches_empty = 0;
  pcre2_pattern_info(regex.code_.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0) {
    return absl::InvalidArgumentError("a regular expression that can match nothing does not split");
  }
  // Without JIT (no executable memory, another CPU) the interpreter finds the same, slower.
  pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE);
  return regex;
}

absl::StatusOr<std::vector<ByteRange>> Regex::FindAll(absl::string_view text) const {
  const MatchData match(pcre2_match_data_create(1, nullptr));
  const MatchContext context(pcre2_match_context_create(nullptr));
  if (match == nullptr || context == nullptr) {
    return absl::ResourceExhaustedError("no memory to search with a regular expression");
  }
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKiB);
  // The small stack that JIT code starts on does for nearly every text.
  JitStack stack;

  const PCRE2_SPTR subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  std::vector<ByteRange> matches;
  size_t at = 0;
  uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
  while (at < text.size()) {
    const int found =
        pcre2_match(code_.get(), subject, text.size(), at, options, match.get(), context.get());
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found == PCRE2_ERROR_JIT_STACKLIMIT && stack == nullptr) {
      stack.reset(pcre2_jit_stack_create(kJitStackBytes / 32, kJitStackBytes, nullptr));
      pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
      continue;
    }
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its frames on the heap
      options |= PCRE2_NO_JIT;
      continue;
    }
    if (found < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("searching with a regular expression: ", Pcre2Message(found)));
    }
    const PCRE2_SIZE* const range = pcre2_get_ovector_pointer(match.get());
    matches.push_back({range[0], range[1]});
    at = range[1];
  }
  return matches;
}

}  // namespace caravan
