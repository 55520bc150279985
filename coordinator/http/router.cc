#include "coordinator/http/router.h"

#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace caravan {
namespace {

constexpr absl::string_view kOneSegment = "{}";
constexpr absl::string_view kRest = "{...}";

std::vector<std::string> Segments(absl::string_view path) {
  return absl::StrSplit(absl::StripPrefix(path, "/"), '/');
}

/// What the pattern's {} stand for; nullopt: the path is another one.
std::optional<std::vector<std::string>> MatchSegments(const std::vector<std::string>& pattern,
                                                      const std::vector<std::string>& path) {
  std::vector<std::string> parameters;
  const auto add = [&](absl::string_view text) {
    absl::StatusOr<std::string> decoded = PercentDecode(text);
    if (!decoded.ok() || decoded->empty()) return false;
    parameters.push_back(*std::move(decoded));
    return true;
  };
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (i >= path.size()) return std::nullopt;
    if (pattern[i] == kRest) {
      if (!add(absl::StrJoin(path.begin() + static_cast<ptrdiff_t>(i), path.end(), "/"))) {
        return std::nullopt;
      }
      return parameters;
    }
    if (pattern[i] == kOneSegment ? !add(path[i]) : pattern[i] != path[i]) return std::nullopt;
  }
  if (path.size() != pattern.size()) return std::nullopt;
  return parameters;
}

}  // namespace

absl::StatusOr<std::string> PercentDecode(absl::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded.push_back(text[i]);
      continue;
    }
    if (i + 2 >= text.size() || !absl::ascii_isxdigit(static_cast<unsigned char>(text[i + 1])) ||
        !absl::ascii_isxdigit(static_cast<unsigned char>(text[i + 2]))) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", text, "\": % must be followed by two hexadecimal digits"));
    }
    decoded += absl::HexStringToBytes(text.substr(i + 1, 2));
    i += 2;
  }
  return decoded;
}

void Router::Handle(absl::string_view method, absl::string_view pattern, HttpHandler handler,
                    RouteOptions options) {
  routes_.push_back(
      {std::string(method), std::string(pattern), Segments(pattern), std::move(handler), options});
}

Router::Match Router::Find(absl::string_view method, absl::string_view path) const {
  const std::vector<std::string> segments = Segments(path);
  Match match;
  std::vector<std::string> allowed;
  for (const Route& route : routes_) {
    std::optional<std::vector<std::string>> parameters = MatchSegments(route.segments, segments);
    if (!parameters.has_value()) continue;
    const bool is_get = route.method == "GET";
    for (const char* name : {route.method.c_str(), is_get ? "HEAD" : "OPTIONS", "OPTIONS"}) {
      if (!absl::c_linear_search(allowed, name)) allowed.push_back(name);
    }
    if (match.route == nullptr && (route.method == method || (is_get && method == "HEAD"))) {
      match.route = &route;
      match.path_parameters = *std::move(parameters);
    }
  }
  match.allowed_methods = absl::StrJoin(allowed, ", ");
  return match;
}

}  // namespace caravan
