#include "cluster/trusted_network.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace caravan {
namespace {

struct FreeInterfaces {
  void operator()(ifaddrs* list) const { ::freeifaddrs(list); }
};

int MaxBits(int family) { return family == AF_INET ? 32 : 128; }

std::optional<std::pair<int, std::array<uint8_t, 16>>> ParseIp(const std::string& text) {
  std::array<uint8_t, 16> bytes{};
  for (const int family : {AF_INET, AF_INET6}) {
    if (::inet_pton(family, text.c_str(), bytes.data()) == 1) return std::pair{family, bytes};
  }
  return std::nullopt;
}

/// The first `bits` bits, all others 0.
std::array<uint8_t, 16> Masked(std::array<uint8_t, 16> bytes, int bits) {
  for (int i = 0; i < 16; ++i) {
    const int kept = bits - 8 * i;
    if (kept >= 8) continue;
    const int mask = kept <= 0 ? 0 : 0xff << (8 - kept);
    bytes[static_cast<size_t>(i)] &= static_cast<uint8_t>(mask);
  }
  return bytes;
}

}  // namespace

absl::StatusOr<TrustedNetwork> TrustedNetwork::Parse(absl::string_view cidr) {
  const auto error = [&](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", cidr, "\" is no network such as 10.0.0.0/8: ", what));
  };
  const size_t slash = cidr.find('/');
  if (slash == absl::string_view::npos) return error("it has no /BITS");
  const auto ip = ParseIp(std::string(cidr.substr(0, slash)));
  if (!ip.has_value()) return error("that is no address");
  const absl::string_view bits_text = cidr.substr(slash + 1);
  TrustedNetwork network;
  network.family_ = ip->first;
  network.bytes_ = ip->second;
  for (const char c : bits_text) {
    if (!absl::ascii_isdigit(c)) return error("the bits are not a number");
  }
  if (!absl::SimpleAtoi(bits_text, &network.bits_) || network.bits_ > MaxBits(network.family_)) {
    return error(absl::StrCat("the bits are from 0 to ", MaxBits(network.family_)));
  }
  if (Masked(network.bytes_, network.bits_) != network.bytes_) {
    return error("the address has bits set beyond those");
  }
  return network;
}

bool TrustedNetwork::Contains(const std::string& address) const {
  const auto ip = ParseIp(address);
  return ip.has_value() && ip->first == family_ && Masked(ip->second, bits_) == bytes_;
}

std::string TrustedNetwork::ToString() const {
  char text[INET6_ADDRSTRLEN] = {};
  ::inet_ntop(family_, bytes_.data(), text, sizeof(text));
  return absl::StrCat(text, "/", bits_);
}

std::vector<InterfaceAddress> InterfaceAddresses() {
  ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0) return {};
  const std::unique_ptr<ifaddrs, FreeInterfaces> list(first);
  std::vector<InterfaceAddress> addresses;
  for (const ifaddrs* each = list.get(); each != nullptr; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || (each->ifa_flags & IFF_UP) == 0) continue;
    const int family = each->ifa_addr->sa_family;
    const void* ip = nullptr;
    if (family == AF_INET) ip = &reinterpret_cast<const sockaddr_in*>(each->ifa_addr)->sin_addr;
    if (family == AF_INET6) ip = &reinterpret_cast<const sockaddr_in6*>(each->ifa_addr)->sin6_addr;
    char text[INET6_ADDRSTRLEN] = {};
    if (ip == nullptr || ::inet_ntop(family, ip, text, sizeof(text)) == nullptr) continue;
    addresses.push_back({each->ifa_name, text});
  }
  return addresses;
}

}  // namespace caravan
