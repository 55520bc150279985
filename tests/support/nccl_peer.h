#ifndef CARAVAN_TESTS_SUPPORT_NCCL_PEER_H_
#define CARAVAN_TESTS_SUPPORT_NCCL_PEER_H_

// Two processes of one machine that speak NCCL, even where it has a single card: NCCL refuses two
// ranks on one card of one host, so each names a host of its own. They reach one another over
// sockets then, as boxes do.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/subprocess.h"

namespace caravan {

/// This process's NCCL is on the host `name`, whose network is the loopback interface. Call before
/// NCCL is first used, and before threads start.
void BeNcclHost(const std::string& name);

/// Starts this very program with other arguments, on an NCCL host of its own. What it prints goes
/// to the file `output_path`.
absl::StatusOr<Subprocess> StartNcclPeer(const std::vector<std::string>& arguments,
                                         const std::string& output_path);

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_NCCL_PEER_H_
