#include "cluster/trusted_network.h"

#include <algorithm>
#include <string>

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(TrustedNetworkTest, ContainsItsAddresses) {
  struct Case {
    const char* cidr;
    const char* address;
    bool inside;
  };
  for (const Case& each : {Case{"10.0.0.0/8", "10.255.3.4", true},
                           {"10.0.0.0/8", "11.0.0.1", false},
                           {"192.168.1.128/25", "192.168.1.200", true},
                           {"192.168.1.128/25", "192.168.1.127", false},
                           {"10.1.2.3/32", "10.1.2.3", true},
                           {"10.1.2.3/32", "10.1.2.2", false},
                           {"0.0.0.0/0", "203.0.113.9", true},
                           {"0.0.0.0/0", "::1", false},
                           {"fd00:1::/33", "fd00:1:7fff::1", true},
                           {"fd00:1::/33", "fd00:1:8000::1", false},
                           {"fd00::/8", "10.0.0.1", false},
                           {"10.0.0.0/8", "box-a", false},
                           {"10.0.0.0/8", "", false}}) {
    const absl::StatusOr<TrustedNetwork> network = TrustedNetwork::Parse(each.cidr);
    ASSERT_TRUE(network.ok()) << each.cidr << ": " << network.status();
    EXPECT_EQ(network->Contains(each.address), each.inside) << each.cidr << " " << each.address;
  }
}

TEST(TrustedNetworkTest, OneNetworkIsWrittenInOneWay) {
  EXPECT_EQ(TrustedNetwork::Parse("10.0.0.0/08")->ToString(), "10.0.0.0/8");
  EXPECT_EQ(TrustedNetwork::Parse("FD00:0::0/8")->ToString(), "fd00::/8");
}

TEST(TrustedNetworkTest, RefusesWhatIsNone) {
  for (const char* cidr : {"", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.1/8",
                           "10.0.0/8", "box/8", "fd00::/129", "fd00::1/64", "10.0.0.0/8x"}) {
    EXPECT_EQ(TrustedNetwork::Parse(cidr).status().code(), absl::StatusCode::kInvalidArgument)
        << cidr;
  }
}

TEST(TrustedNetworkTest, LoopbackIsAmongThisMachinesAddresses) {
  const std::vector<InterfaceAddress> addresses = InterfaceAddresses();
  EXPECT_TRUE(std::any_of(addresses.begin(), addresses.end(), [](const InterfaceAddress& each) {
    return each.interface == "lo" && each.address == "127.0.0.1";
  }));
}

}  // namespace
}  // namespace caravan
