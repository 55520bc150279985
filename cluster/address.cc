#include "cluster/address.h"

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace caravan {
namespace {

constexpr int kMaxPort = 65535;

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

}  // namespace caravan
