#ifndef CARAVAN_CLI_KV_DISK_FLAGS_H_
#define CARAVAN_CLI_KV_DISK_FLAGS_H_

// How much of a disk KV blocks may take, and where: for every command with stages of its own.

#include <cstdint>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace caravan {

/// The options --kv-disk and --kv-disk-dir.
struct KvDiskFlags {
  int64_t bytes = 0;  // 0: not given
  std::string directory = ".";

  /// Keeps a reference to this. Returns --kv-disk.
  CLI::Option* AddTo(CLI::App& command);

  /// Whether the disk would take so much now, so that this is said before anything is loaded.
  /// Errors: InvalidArgument - `directory` takes no file, or the disk lacks room; names the flag.
  absl::Status Check() const;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_KV_DISK_FLAGS_H_
