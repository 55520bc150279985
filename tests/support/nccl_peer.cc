#include "tests/support/nccl_peer.h"

#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"

namespace caravan {

void BeNcclHost(const std::string& name) {
  ::setenv("NCCL_HOSTID", name.c_str(), 1);
  ::setenv("NCCL_SOCKET_IFNAME", "lo", 1);
}

absl::StatusOr<Subprocess> StartNcclPeer(const std::vector<std::string>& arguments,
                                         const std::string& output_path) {
  static int num_peers = 0;
  Subprocess::Options options;
  // env replaces itself with the program, so the process stays the one that was started.
  options.command = {"/usr/bin/env", absl::StrCat("NCCL_HOSTID=peer-", ++num_peers),
                     "NCCL_SOCKET_IFNAME=lo", std::filesystem::read_symlink("/proc/self/exe")};
  options.command.insert(options.command.end(), arguments.begin(), arguments.end());
  options.stdout_path = output_path;
  options.stderr_path = output_path;
  return Subprocess::Start(options);
}

}  // namespace caravan
