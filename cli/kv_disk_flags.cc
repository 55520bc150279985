#include "cli/kv_disk_flags.h"

#include <cstdint>
#include <filesystem>
#include <system_error>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/io/direct_file.h"
#include "base/status_macros.h"
#include "cli/command.h"
#include "cli/validators.h"

namespace caravan {

CLI::Option* KvDiskFlags::AddTo(CLI::App& command) {
  CLI::Option* const size = AddByteSizeOption(
      command, "--kv-disk", bytes,
      "Disk for the KV cache of sequences that memory has no room for, such as 100GiB: a step then "
      "reads theirs layer by layer");
  command
      .add_option("--kv-disk-dir", directory,
                  "Where --kv-disk is, in a file without a name that goes with the process")
      ->type_name("DIRECTORY")
      ->check(NotEmpty())
      ->needs(size)
      ->capture_default_str();
  return size;
}

absl::Status KvDiskFlags::Check() const {
  if (bytes == 0) return absl::OkStatus();
  if (const absl::Status takes = DirectFile::CreateScratch(directory, kDirectAlignment).status();
      !takes.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--kv-disk-dir: ", takes.message()));
  }
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(directory, error);
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-disk-dir: ", directory, ": ", error.message()));
  }
  if (space.available >= static_cast<uintmax_t>(bytes)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--kv-disk ", FormatByteSize(bytes), ": ", directory, " has ",
                   FormatByteSize(static_cast<int64_t>(space.available)), " free"));
}

}  // namespace caravan
