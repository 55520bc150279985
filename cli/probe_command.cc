// caravan probe: what this machine's parts give, as the engine uses them; by itself all of them in
// brief (cli/probe_box_command.cc), and more of some by subcommands. caravan probe disk: its
// reads of experts. caravan probe experts: what computing them takes, on the CPU and on a card.

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
#include "cli/device_flags.h"
#include "cli/disk_probe.h"
#include "cli/expert_probe.h"
#include "cli/stop_signals.h"
#include "cli/thread_count.h"
#include "model/stored_model.h"

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

struct ProbeExpertsFlags {
  std::string model;
  DeviceFlags device = {"cuda:0", 0, 1};
  int threads = 0;
  CpuIsa isa = CpuIsa::kAuto;
  int64_t rows = 256;
  bool json = false;
};

absl::Status RunProbeExperts(const ProbeExpertsFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const int num_threads, ThreadCount(flags.threads));
  CARAVAN_ASSIGN_OR_RETURN(const std::shared_ptr<const ComputeDevice> device,
                           flags.device.Open({.num_threads = num_threads, .isa = flags.isa}));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model, OpenStoredModel(flags.model));
  CARAVAN_ASSIGN_OR_RETURN(const ExpertProbe probe, ProbeExperts(*model, *device, flags.rows));
  const std::string text =
      flags.json ? ExpertProbeJson(probe).dump() + "\n" : ExpertProbeTable(probe);
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

void AddProbeExpertsCommand(CLI::App& probe, CommandBody& body) {
  CLI::App* const command = probe.add_subcommand(
      "experts", "Measure what routed experts take on the CPU, on a card, and on the way to it");
  const auto flags = std::make_shared<ProbeExpertsFlags>();
  AddConfigOption(*command);
  command->add_option("--model", flags->model, "A packed model")->required();
  flags->device.AddTo(*command);
  command->add_option("--threads", flags->threads, "CPU threads; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  AddIsaOption(*command, flags->isa);
  command->add_option("--rows", flags->rows, "Up to so many rows")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "One line of JSON, for programs");
  command->callback(
      [flags, &body] { body = [flags] { return ReportStatus(RunProbeExperts(*flags)); }; });
}

}  // namespace

void AddProbeCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "probe", "Measure what this machine gives to the engine, for caravan plan");
  command->require_subcommand(0, 1);
  AddProbeBoxOptions(*command, body);
  AddProbeDiskCommand(*command, body);
  AddProbeExpertsCommand(*command, body);
  AddProbeLinkCommand(*command, body);
  AddProbeListenCommand(*command, body);
}

}  // namespace caravan
