// The tests' process, and with "peer ROLE UNIQUE_ID BYTES" the other one that they talk to.

#include <cstdlib>
#include <iostream>
#include <string>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "tests/support/nccl_peer.h"
#include "tests/worker/nccl/peer_roles.h"

int main(int argc, char** argv) {
  if (argc == 5 && std::string(argv[1]) == "peer") {
    const absl::Status played = caravan::PlayPeer(
        static_cast<caravan::PeerRole>(std::atoi(argv[2])), argv[3], std::atoll(argv[4]));
    if (!played.ok()) std::cerr << played << "\n";
    return played.ok() ? 0 : 1;
  }
  caravan::BeNcclHost("tests");
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
