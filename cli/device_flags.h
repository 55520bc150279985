#ifndef CARAVAN_CLI_DEVICE_FLAGS_H_
#define CARAVAN_CLI_DEVICE_FLAGS_H_

// What stages compute with, and how much of a card's memory they may take: for every command with
// stages of its own.

#include <memory>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "worker/compute_device.h"

namespace caravan {

/// The options --device and --vram.
struct DeviceFlags {
  std::string device = "cpu";
  int64_t vram = 0;  // in bytes; 0: not given
  int sharers = 1;   // stages that share it evenly

  /// Keeps a reference to this.
  void AddTo(CLI::App& command);

  /// Errors: as OpenComputeDevice, with the flag's name.
  absl::StatusOr<std::shared_ptr<const ComputeDevice>> Open(const CpuOptions& cpu) const;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_DEVICE_FLAGS_H_
