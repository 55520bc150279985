#include "cluster/address.h"

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace caravan {
namespace {

constexpr int kMaxPort = 65535;

bool IsLoopbackV4(absl::string_view host) {
  const std::vector<absl::string_view> parts = absl::StrSplit(host, '.');
  if (parts.size() != 4 || parts[0] != "127") return false;
  for (const absl::string_view part : parts) {
    int byte = 0;
    if (part.size() > 3 || !absl::SimpleAtoi(part, &byte) || byte < 0 || byte > 255) return false;
  }
  return true;
}

}  // namespace

absl::Status CheckAddress(absl::string_view address, int min_port) {
  const size_t colon = address.rfind(':');
  const auto error = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("\"", address, "\" is not HOST:PORT: ", what));
  };
  if (colon == absl::string_view::npos) return error("it has no port");
  const absl::string_view host = address.substr(0, colon);
  const absl::string_view port_text = address.substr(colon + 1);
  int port = 0;
  for (const char c : port_text) {
    if (!absl::ascii_isdigit(c)) return error("the port is not a number");
  }
  if (!absl::SimpleAtoi(port_text, &port) || port < min_port || port > kMaxPort) {
    return error(absl::StrCat("a port is from ", min_port, " to ", kMaxPort));
  }
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (host.empty()) return error("it has no host");
  for (const char c : host) {
    // What names and addresses are made of; % introduces an IPv6 zone.
    const bool plain = absl::ascii_isalnum(c) || c == '.' || c == '-' || c == '_';
    const bool inner = bracketed && (c == ':' || c == '%' || c == '[' || c == ']');
    if (!plain && !inner) return error("that is no host (IPv6 addresses go in brackets)");
  }
  return absl::OkStatus();
}

bool IsLoopbackName(absl::string_view name) {
  const size_t scheme = name.find("://");
  if (scheme != absl::string_view::npos) name.remove_prefix(scheme + 3);
  if (absl::StartsWith(name, "[")) {
    const size_t end = name.find(']');
    return end != absl::string_view::npos && name.substr(1, end - 1) == "::1" &&
           (end + 1 == name.size() || name[end + 1] == ':');
  }
  const absl::string_view host = name.substr(0, name.find(':'));
  return absl::EqualsIgnoreCase(host, "localhost") || IsLoopbackV4(host);
}

}  // namespace caravan
