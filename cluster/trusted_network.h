#ifndef CARAVAN_CLUSTER_TRUSTED_NETWORK_H_
#define CARAVAN_CLUSTER_TRUSTED_NETWORK_H_

// Networks whose hosts the operator trusts: activations may go there unencrypted, by NCCL.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

class TrustedNetwork {
 public:
  /// ADDRESS/BITS, of IPv4 or IPv6, such as 10.0.0.0/8.
  /// Errors: InvalidArgument - anything else, or an address with bits set beyond BITS.
  static absl::StatusOr<TrustedNetwork> Parse(absl::string_view cidr);

  /// `address` is written without a port or brackets. False for what is no address.
  bool Contains(const std::string& address) const;

  /// As Parse takes it; the same for every way to write the same network.
  std::string ToString() const;

 private:
  using Bytes = std::array<uint8_t, 16>;

  int family_ = 0;  // AF_INET or AF_INET6
  Bytes bytes_{};   // of an IPv4 address the first four
  int bits_ = 0;
};

/// An address of one of this machine's network interfaces.
struct InterfaceAddress {
  std::string interface;  // "eth0"
  std::string address;    // "10.0.0.2"
};

/// All of them, of interfaces that are up.
std::vector<InterfaceAddress> InterfaceAddresses();

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_TRUSTED_NETWORK_H_
