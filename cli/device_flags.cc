#include "cli/device_flags.h"

#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "base/status_macros.h"
#include "cli/command.h"

namespace caravan {

void DeviceFlags::AddTo(CLI::App& command) {
  command
      .add_option("--device", device, "What computes: cpu, or one of this machine's cards, cuda:0")
      ->type_name("cpu|cuda:N")
      ->capture_default_str();
  AddByteSizeOption(command, "--vram", vram,
                    "Of the card's memory, what may be taken in all, such as 11.2GiB; all that is "
                    "free but 512 MiB if not given");
}

absl::StatusOr<std::shared_ptr<const ComputeDevice>> DeviceFlags::Open(
    const CpuOptions& cpu) const {
  absl::StatusOr<std::unique_ptr<ComputeDevice>> opened =
      OpenComputeDevice({.name = device, .vram_bytes = vram, .cpu = cpu});
  if (!opened.ok()) {
    // A wrong budget is told by its own flag.
    const bool is_vram = absl::StartsWith(opened.status().message(), "--vram");
    return is_vram ? opened.status() : Annotate(opened.status(), "--device");
  }
  return *std::move(opened);
}

}  // namespace caravan
