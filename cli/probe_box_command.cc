// caravan probe, without a subcommand: measure this box for caravan plan.

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/byte_size.h"
#include "base/output_file.h"
#include "base/status_macros.h"
#include "cli/box_probe.h"
#include "cli/commands.h"
#include "cli/disk_probe.h"
#include "cli/stop_signals.h"
#include "cli/thread_count.h"
#include "cli/validators.h"
#include "cluster/address.h"
#include "cluster/box_json.h"

namespace caravan {
namespace {

struct ProbeBoxFlags {
  std::string out;
  std::string disk = ".";
  std::vector<std::string> mirrors;
  int64_t scratch_bytes = BoxProbeOptions().scratch_bytes;
  std::string device = "auto";
  std::string link;
  std::string name;
  int threads = 0;
  CpuIsa isa = CpuIsa::kAuto;
  double seconds = absl::ToDoubleSeconds(BoxProbeOptions().duration);
  bool json = false;
};

void Say(absl::string_view line) {
  std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
}

/// Null: no card is measured, on stderr why not.
absl::StatusOr<std::unique_ptr<ComputeDevice>> OpenCardToMeasure(const ProbeBoxFlags& flags,
                                                                 const CpuOptions& cpu) {
  if (flags.device == "cpu") return nullptr;
  DeviceOptions device;
  device.name = flags.device == "auto" ? "cuda:0" : flags.device;
  device.cpu = cpu;
  absl::StatusOr<std::unique_ptr<ComputeDevice>> card = OpenComputeDevice(device);
  if (card.ok()) return card;
  if (flags.device != "auto") {
    return Annotate(card.status(), absl::StrCat("--device ", flags.device));
  }
  Say(absl::StrCat("no card is measured: ", card.status().message()));
  return nullptr;
}

absl::Status RunProbeBox(const ProbeBoxFlags& flags) {
  const StopSignals signals;
  // Said before the measuring, not after it.
  if (!flags.out.empty()) {
    CARAVAN_RETURN_IF_ERROR(Annotate(OutputFile::Create(flags.out).status(), "--out"));
  }
  if (!flags.link.empty()) CARAVAN_RETURN_IF_ERROR(Annotate(CheckAddress(flags.link), "--link"));
  if (flags.scratch_bytes < kLeastProbeBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--size: ", FormatByteSize(flags.scratch_bytes),
                                                   " is less than ",
                                                   FormatByteSize(kLeastProbeBytes)));
  }
  BoxProbeOptions options;
  CARAVAN_ASSIGN_OR_RETURN(options.cpu.num_threads, ThreadCount(flags.threads));
  options.cpu.isa = flags.isa;
  options.disk_directory = flags.disk;
  options.mirrors = flags.mirrors;
  options.scratch_bytes = flags.scratch_bytes;
  options.link_address = flags.link;
  options.duration = absl::Seconds(flags.seconds);
  options.on_result = Say;
  options.stop = signals.token();
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<ComputeDevice> card,
                           OpenCardToMeasure(flags, options.cpu));
  options.card = card.get();

  CARAVAN_ASSIGN_OR_RETURN(Box box, ProbeBox(options));
  if (!flags.name.empty()) box.name = flags.name;
  const nlohmann::json json = BoxToJson(box);
  if (!flags.out.empty()) {
    CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, OutputFile::Create(flags.out));
    CARAVAN_RETURN_IF_ERROR(file->Write(json.dump(2) + "\n"));
    CARAVAN_RETURN_IF_ERROR(file->Commit());
  }
  const std::string text = flags.json ? json.dump() + "\n" : BoxTable(box);
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

void AddProbeBoxOptions(CLI::App& probe, CommandBody& body) {
  const auto flags = std::make_shared<ProbeBoxFlags>();
  AddConfigOption(probe);
  probe
      .add_option("--out", flags->out,
                  "Write what was measured to FILE, as JSON for caravan plan --boxes")
      ->check(NotEmpty())
      ->type_name("FILE");
  probe
      .add_option("--disk", flags->disk,
                  "Where the model lies or will lie; a scratch file is written there for the time "
                  "being")
      ->type_name("DIRECTORY")
      ->capture_default_str();
  probe
      .add_option("--mirror", flags->mirrors,
                  "A directory on another drive that will have copies of the model's files "
                  "(caravan worker --mirror); one scratch file each, and all are read at once. "
                  "May be given several times")
      ->check(NotEmpty())
      ->type_name("DIRECTORY")
      ->allow_extra_args(false);
  AddByteSizeOption(probe, "--size", flags->scratch_bytes,
                    "Of the scratch file; larger than the disk's caches")
      ->default_str("2GiB");
  probe
      .add_option("--device", flags->device,
                  "The card that is measured; auto: the first one, if there is one; cpu: none")
      ->type_name("auto|cpu|cuda:N")
      ->capture_default_str();
  probe.add_option("--link", flags->link,
                   "Measure the network too, as caravan probe link does: HOST:PORT of a "
                   "coordinator, a worker or caravan probe listen");
  probe.add_option("--name", flags->name, "What the box is called; the host's name if not given");
  probe.add_option("--threads", flags->threads, "CPU threads; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  AddIsaOption(probe, flags->isa);
  probe.add_option("--seconds", flags->seconds, "For each of about eight measurements")
      ->check(CLI::Range(0.01, 10.0))
      ->capture_default_str();
  probe.add_flag("--json", flags->json, "One line of JSON, for programs");
  probe.callback([&probe, flags, &body] {
    if (!probe.get_subcommands().empty()) return;
    body = [flags] { return ReportStatus(RunProbeBox(*flags)); };
  });
}

}  // namespace caravan
