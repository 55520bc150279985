// caravan probe: what this machine's parts give, as the engine uses them. caravan probe disk: its
// reads of experts.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/byte_size.h"
#include "base/io/direct_file.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/disk_probe.h"
#include "cli/stop_signals.h"

namespace caravan {
namespace {

struct ProbeDiskFlags {
  std::string path;
  std::string size = "4GiB";
  double seconds = 1;
  bool json = false;
};

absl::StatusOr<std::unique_ptr<DirectFile>> FileToRead(const ProbeDiskFlags& flags,
                                                       const std::stop_token& stop) {
  const absl::StatusOr<int64_t> bytes = ParseByteSize(flags.size);
  CARAVAN_RETURN_IF_ERROR(Annotate(bytes.status(), "--size"));
  if (*bytes < kLeastProbeBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("--size: ", flags.size, " is less than ", FormatByteSize(kLeastProbeBytes)));
  }
  std::error_code ignored;
  if (std::filesystem::is_directory(flags.path, ignored)) {
    return MakeScratchFile(flags.path, *bytes, stop);
  }
  return DirectFile::Open(flags.path);
}

absl::Status RunProbeDisk(const ProbeDiskFlags& flags) {
  const StopSignals signals;
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<DirectFile> file,
                           FileToRead(flags, signals.token()));
  CARAVAN_ASSIGN_OR_RETURN(const DiskProbe probe,
                           ProbeDisk(*file, absl::Seconds(flags.seconds), signals.token()));
  const std::string text = flags.json ? DiskProbeJson(probe).dump() + "\n" : DiskProbeTable(probe);
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

void AddProbeDiskCommand(CLI::App& probe, CommandBody& body) {
  CLI::App* const command = probe.add_subcommand(
      "disk", "Measure what reads of experts get from a disk, by their size and number");
  const auto flags = std::make_shared<ProbeDiskFlags>();
  AddConfigOption(*command);
  command
      ->add_option("path", flags->path,
                   "A directory, where a scratch file is written for the time being, or a file")
      ->required();
  command->add_option("--size", flags->size, "Of the scratch file; larger than the disk's caches")
      ->capture_default_str();
  command->add_option("--seconds", flags->seconds, "For each of 24 measurements")
      ->check(CLI::Range(0.01, 60.0))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "One line of JSON, for programs");
  command->callback(
      [flags, &body] { body = [flags] { return ReportStatus(RunProbeDisk(*flags)); }; });
}

}  // namespace

void AddProbeCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command =
      app.add_subcommand("probe", "Measure what this machine's parts give to the engine");
  command->require_subcommand(1);
  AddProbeDiskCommand(*command, body);
}

}  // namespace caravan
