#include "cli/device_flags.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
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
  if (device == "cpu" && vram > 0) {
    return absl::InvalidArgumentError("--vram: the CPU has none; name a card with --device");
  }
  absl::StatusOr<std::unique_ptr<ComputeDevice>> opened =
      OpenComputeDevice({.name = device, .memory_bytes = vram, .sharers = sharers, .cpu = cpu});
  if (!opened.ok()) {
    return Annotate(opened.status(),
                    absl::StrCat("--device ", device,
                                 vram > 0 ? absl::StrCat(", --vram ", FormatByteSize(vram)) : ""));
  }
  return *std::move(opened);
}

}  // namespace caravan
