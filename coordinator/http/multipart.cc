#include "coordinator/http/multipart.h"

#include <cstddef>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "coordinator/http/router.h"

namespace caravan {
namespace {

// A form of ours has a handful of parts with two short headers each.
constexpr size_t kMaxParts = 64;
constexpr size_t kMaxPartHeaderBytes = size_t{16} << 10;

constexpr size_t kMaxBoundaryBytes = 70;  // RFC 2046, section 5.1.1
constexpr char kBlanks[] = " \t";
constexpr char kCrLf[] = "\r\n";

absl::Status FormError(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("the form in the request's body: ", what));
}

absl::Status PartError(size_t number, absl::string_view what) {
  return FormError(absl::StrCat("part ", number, " ", what));
}

absl::string_view TakeBlanks(absl::string_view text) {
  const size_t end = text.find_first_not_of(kBlanks);
  return end == absl::string_view::npos ? absl::string_view() : text.substr(end);
}

bool IsTokenChar(char c) {
  return absl::ascii_isgraph(static_cast<unsigned char>(c)) &&
         !absl::StrContains("()<>@,;:\\\"/[]?=", c);
}

absl::string_view ConsumeToken(absl::string_view& text) {
  size_t length = 0;
  while (length < text.size() && IsTokenChar(text[length])) ++length;
  const absl::string_view token = text.substr(0, length);
  text.remove_prefix(length);
  return token;
}

/// A header's value, such as: form-data; name="file"; filename="a.jsonl".
class HeaderValue {
 public:
  /// nullopt: malformed.
  static std::optional<HeaderValue> Parse(absl::string_view text) {
    HeaderValue value;
    const size_t end = text.find(';');
    value.word_ = std::string(absl::StripAsciiWhitespace(text.substr(0, end)));
    absl::string_view rest = end == absl::string_view::npos ? "" : text.substr(end);
    while (!(rest = TakeBlanks(rest)).empty()) {
      if (!absl::ConsumePrefix(&rest, ";")) return std::nullopt;
      rest = TakeBlanks(rest);
      if (rest.empty()) break;  // a last semicolon says nothing
      if (!value.ConsumeParameter(rest)) return std::nullopt;
    }
    return value;
  }

  bool Is(absl::string_view word) const { return absl::EqualsIgnoreCase(word_, word); }

  /// The first such parameter's value.
  std::optional<std::string> Parameter(absl::string_view name) const {
    for (const auto& [key, value] : parameters_) {
      if (absl::EqualsIgnoreCase(key, name)) return value;
    }
    return std::nullopt;
  }

 private:
  bool ConsumeParameter(absl::string_view& text) {
    const absl::string_view name = ConsumeToken(text);
    text = TakeBlanks(text);
    if (name.empty() || !absl::ConsumePrefix(&text, "=")) return false;
    text = TakeBlanks(text);
    std::string value;
    if (absl::ConsumePrefix(&text, "\"")) {
      if (!ConsumeQuoted(text, value)) return false;
    } else {
      value = std::string(ConsumeToken(text));
      if (value.empty()) return false;
    }
    parameters_.emplace_back(std::string(name), std::move(value));
    return true;
  }

  /// What follows an opening quote, up to and with the closing one.
  static bool ConsumeQuoted(absl::string_view& text, std::string& value) {
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '"') {
        text.remove_prefix(i + 1);
        return true;
      }
      // Only a quote or a backslash is meant as escaped: browsers of old sent C:\path\file as it
      // is.
      const bool escape =
          text[i] == '\\' && i + 1 < text.size() && (text[i + 1] == '"' || text[i + 1] == '\\');
      value.push_back(escape ? text[++i] : text[i]);
    }
    return false;
  }

  std::string word_;
  std::vector<std::pair<std::string, std::string>> parameters_;
};

absl::StatusOr<std::string> FindBoundary(absl::string_view content_type) {
  const std::optional<HeaderValue> value = HeaderValue::Parse(content_type);
  if (!value.has_value() || !value->Is("multipart/form-data")) {
    return absl::InvalidArgumentError(
        absl::StrCat("Content-Type is \"", content_type.substr(0, 100),
                     "\" and must be multipart/form-data; boundary=..."));
  }
  std::optional<std::string> boundary = value->Parameter("boundary");
  if (!boundary.has_value() || boundary->empty()) {
    return absl::InvalidArgumentError("Content-Type names no boundary");
  }
  bool fits = boundary->size() <= kMaxBoundaryBytes && boundary->back() != ' ';
  for (const char c : *boundary) {
    fits = fits && (absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                    absl::StrContains("'()+_,-./:=? ", c));
  }
  if (!fits) {
    return absl::InvalidArgumentError(
        "Content-Type's boundary must be 1 to 70 of the characters that RFC 2046 allows");
  }
  return *std::move(boundary);
}

/// A delimiter within a body.
struct Delimiter {
  size_t begin = 0;  // of it, and so the end of the content before it
  size_t end = 0;    // where the part behind it begins
  bool last = false;
};

/// Finds delimiters one after another.
class DelimiterScanner {
 public:
  DelimiterScanner(absl::string_view body, absl::string_view boundary)
      : body_(body), line_(absl::StrCat("--", boundary)), needle_(absl::StrCat(kCrLf, line_)) {}

  /// nullopt: no further one. A line that only begins like a delimiter belongs to the content.
  std::optional<Delimiter> Next() {
    if (at_ == 0 && absl::StartsWith(body_, line_)) {
      if (const std::optional<Delimiter> first = Match(0, line_.size())) return first;
    }
    while (true) {
      const size_t found = body_.find(needle_, at_);
      if (found == absl::string_view::npos) return std::nullopt;
      if (const std::optional<Delimiter> next = Match(found, found + needle_.size())) return next;
      at_ = found + needle_.size();
    }
  }

 private:
  /// `after` is where the boundary ends.
  std::optional<Delimiter> Match(size_t begin, size_t after) {
    absl::string_view rest = body_.substr(after);
    const bool last = absl::StartsWith(rest, "--");
    if (!last) {
      rest = TakeBlanks(rest);
      if (!absl::ConsumePrefix(&rest, kCrLf)) return std::nullopt;
    }
    // The next delimiter may take its line break from the end of this one: an empty part without
    // even a header, which is then refused by name.
    at_ = body_.size() - rest.size() - (last ? 0 : 2);
    return Delimiter{begin, body_.size() - rest.size(), last};
  }

  const absl::string_view body_;
  const std::string line_;
  const std::string needle_;
  size_t at_ = 0;
};

/// Percent-encoded UTF-8 behind "UTF-8''" (RFC 8187), which some clients send beside `filename` or
/// in its place for names that are not ASCII.
std::optional<std::string> DecodeExtended(const std::optional<std::string>& value) {
  constexpr absl::string_view kPrefix = "UTF-8''";
  if (!value.has_value() || !absl::StartsWithIgnoreCase(*value, kPrefix)) return std::nullopt;
  absl::StatusOr<std::string> decoded = PercentDecode(value->substr(kPrefix.size()));
  if (!decoded.ok()) return std::nullopt;
  return *std::move(decoded);
}

absl::StatusOr<FormPart> ParsePart(absl::string_view text, size_t number) {
  std::optional<HeaderValue> disposition;
  size_t header_bytes = 0;
  while (true) {
    // Not searched further: without a line break the whole content would count as one header.
    const size_t end = text.substr(0, kMaxPartHeaderBytes).find(kCrLf);
    if (end == absl::string_view::npos) {
      return PartError(number, text.size() > kMaxPartHeaderBytes
                                   ? "has more than 16 KiB of headers"
                                   : "has no empty line behind its headers");
    }
    const absl::string_view line = text.substr(0, end);
    text.remove_prefix(end + 2);
    if (line.empty()) break;
    header_bytes += line.size();
    if (header_bytes > kMaxPartHeaderBytes) {
      return PartError(number, "has more than 16 KiB of headers");
    }
    const size_t colon = line.find(':');
    if (colon == absl::string_view::npos) return PartError(number, "has a header without a colon");
    if (!absl::EqualsIgnoreCase(line.substr(0, colon), "Content-Disposition")) continue;
    if (disposition.has_value()) return PartError(number, "has two headers Content-Disposition");
    disposition = HeaderValue::Parse(absl::StripAsciiWhitespace(line.substr(colon + 1)));
    if (!disposition.has_value() || !disposition->Is("form-data")) {
      return PartError(number,
                       "has a malformed Content-Disposition; it must be form-data; "
                       "name=\"...\"");
    }
  }
  FormPart part;
  const std::optional<std::string> name =
      disposition.has_value() ? disposition->Parameter("name") : std::nullopt;
  if (!name.has_value() || name->empty()) {
    return PartError(number, "has no name in its Content-Disposition");
  }
  part.name = *name;
  part.filename = DecodeExtended(disposition->Parameter("filename*"));
  if (!part.filename.has_value()) part.filename = disposition->Parameter("filename");
  part.content = text;
  return part;
}

}  // namespace

absl::StatusOr<std::vector<FormPart>> ParseMultipartForm(absl::string_view content_type,
                                                         absl::string_view body) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string boundary, FindBoundary(content_type));
  DelimiterScanner delimiters(body, boundary);
  std::optional<Delimiter> before = delimiters.Next();
  if (!before.has_value()) return FormError("the boundary of Content-Type is not in it");
  std::vector<FormPart> parts;
  while (!before->last) {
    const size_t number = parts.size() + 1;
    if (number > kMaxParts) return FormError(absl::StrCat("more than ", kMaxParts, " parts"));
    const std::optional<Delimiter> behind = delimiters.Next();
    if (!behind.has_value()) return PartError(number, "is cut off: no boundary ends it");
    const size_t size = behind->begin > before->end ? behind->begin - before->end : 0;
    CARAVAN_ASSIGN_OR_RETURN(FormPart part, ParsePart(body.substr(before->end, size), number));
    parts.push_back(std::move(part));
    before = behind;
  }
  return parts;
}

}  // namespace caravan
