// caravan worker: hold one stage of a coordinator's model.

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/byte_size.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/stoppable_sleep.h"
#include "cli/box_probe.h"
#include "cli/commands.h"
#include "cli/device_flags.h"
#include "cli/expert_flags.h"
#include "cli/kv_disk_flags.h"
#include "cli/progress_bar.h"
#include "cli/security_flags.h"
#include "cli/stop_signals.h"
#include "cli/validators.h"
#include "cluster/address.h"
#include "cluster/box_json.h"
#include "cluster/certificate_watch.h"
#include "cluster/machine.h"
#include "cluster/trusted_network.h"
#include "model/pack/packed_model.h"
#include "worker/process_memory.h"
#include "worker/session.h"

namespace caravan {
namespace {

// A coordinator that is leaving refuses at once, for as long as that takes it.
constexpr absl::Duration kRejoinPause = absl::Milliseconds(200);

struct WorkerFlags {
  WorkerSessionOptions options;
  std::string ram;
  std::string box;  // a path
  std::string offload = "auto";
  DeviceFlags device;
  SecurityFlags security;
  std::string transport = "auto";
  std::vector<std::string> trusted_networks;
  KvDiskFlags kv_disk;
  int64_t kv_archive_bytes = 0;
  std::string kv_archive_directory = "kv-archive";
  std::string kv_replica;  // empty: disk with an archive, else none
  ExpertFlags experts;
  std::string expert_heat = "auto";
  ModelCache::Options model_cache;  // of a directory, where it was given
  double share_files = kDefaultSharePercent;
  int threads = 0;
  CpuIsa isa = CpuIsa::kAuto;
  double connect_timeout_s = 60;
};

/// Whether files can be expected there. Errors: InvalidArgument - `path` is no directory.
absl::Status CheckDirectory(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(path.string(), ": not a directory"));
}

/// Said here rather than with the first stage, hours later perhaps.
absl::Status ApplyExpertFlags(WorkerFlags& flags) {
  WorkerSessionOptions& options = flags.options;
  options.offloads = flags.offload == "auto";
  options.experts = flags.experts.store;
  options.record_routing = flags.experts.record_routing;
  if (!options.record_routing.empty()) {
    const std::filesystem::path parent =
        std::filesystem::path(options.record_routing).parent_path();
    CARAVAN_RETURN_IF_ERROR(
        Annotate(CheckDirectory(parent.empty() ? "." : parent), "--record-routing"));
  }
  for (const std::string& mirror : options.mirrors) {
    CARAVAN_RETURN_IF_ERROR(Annotate(CheckDirectory(mirror), "--mirror"));
  }
  if (!options.mirrors.empty()) {
    CARAVAN_RETURN_IF_ERROR(
        Annotate(PackedModel::CheckMirrors(options.model_directory, options.mirrors), "--mirror"));
  }
  if (flags.expert_heat == "off") {
    options.expert_heat.reset();
  } else if (flags.expert_heat != "auto") {
    CARAVAN_RETURN_IF_ERROR(Annotate(CheckDirectory(flags.expert_heat), "--expert-heat"));
    options.expert_heat = flags.expert_heat;
  }
  return absl::OkStatus();
}

/// Opens the archive of KV blocks, once for all sessions.
absl::Status ApplyKvArchive(const WorkerFlags& flags, WorkerSessionOptions& options) {
  const bool archives = flags.kv_archive_bytes > 0;
  if (archives && flags.kv_replica == "none") {
    return absl::InvalidArgumentError(
        "--kv-replica none: --kv-archive SIZE says that KV blocks are kept; leave one of them out");
  }
  if (!archives && !flags.kv_replica.empty() && flags.kv_replica != "none") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--kv-replica ", flags.kv_replica, ": give --kv-archive SIZE, the disk that it may take"));
  }
  if (!archives) return absl::OkStatus();
  options.kv_replicates = flags.kv_replica == "peer";
  absl::StatusOr<std::unique_ptr<KvBlockStore>> store =
      KvBlockStore::Open(flags.kv_archive_directory, flags.kv_archive_bytes);
  if (!store.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--kv-archive-dir: ", store.status().message()));
  }
  options.kv_store = *std::move(store);
  return absl::OkStatus();
}

/// What a card cannot do yet.
absl::Status CheckCard(const WorkerSessionOptions& options) {
  if (!options.device->is_card() || options.kv_disk_bytes == 0) return absl::OkStatus();
  return absl::InvalidArgumentError("--kv-disk: a card's KV cache is in its memory only");
}

/// What carries activations between cards. NCCL is not even looked for by tcp, and without a card.
absl::Status ApplyTransport(const std::string& transport, WorkerSessionOptions& options) {
  if (transport == "tcp") return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<CardTransport>> nccl = options.device->OpenCardTransport();
  if (nccl.ok()) {
    options.card_transport = *std::move(nccl);
    options.requires_card_transport = transport == "nccl";
  } else if (transport == "nccl") {
    return absl::InvalidArgumentError(absl::StrCat("--transport nccl: ", nccl.status().message()));
  } else if (options.device->is_card()) {
    LogInfo("nccl_not_used", {{"why", nccl.status().message()}});
  }
  return absl::OkStatus();
}

/// Registers those of the trusted networks that this machine has an address in, and has NCCL use
/// them: it would else go by whichever interface it finds first.
absl::Status ApplyTrustedNetworks(const std::vector<std::string>& networks,
                                  WorkerSessionOptions& options) {
  std::vector<std::string> interfaces;
  for (const std::string& text : networks) {
    absl::StatusOr<TrustedNetwork> network = TrustedNetwork::Parse(text);
    if (!network.ok()) return Annotate(network.status(), "--trusted-network");
    bool here = false;
    for (const InterfaceAddress& each : InterfaceAddresses()) {
      if (!network->Contains(each.address)) continue;
      here = true;
      interfaces.push_back(each.interface);
    }
    if (here) {
      options.trusted_networks.push_back(network->ToString());
    } else {
      LogWarning("trusted_network_not_here",
                 {{"network", text}, {"why", "this machine has no address in it"}});
    }
  }
  // Exactly those. Whoever sets the variable himself knows better.
  if (!interfaces.empty()) {
    ::setenv("NCCL_SOCKET_IFNAME", absl::StrCat("=", absl::StrJoin(interfaces, ",")).c_str(),
             /*overwrite=*/0);
  }
  return absl::OkStatus();
}

/// Where neighbours are listened to, unless --listen says: everywhere, if they have to show who
/// they are or nobody minds; on loopback where the coordinator is.
absl::Status ApplyListen(WorkerSessionOptions& options) {
  const TransportSecurity& security = options.security;
  if (options.listen.empty()) {
    const bool everywhere = security.tls != nullptr || security.insecure;
    if (!everywhere && !IsLoopbackName(options.coordinator)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the coordinator at ", options.coordinator,
          " is not on this machine, and without certificates a worker serves only this one: give "
          "--certs DIRECTORY (caravan certs makes one), or --insecure where everybody who reaches "
          "it may do everything"));
    }
    const bool by_ipv6 = absl::StartsWith(options.coordinator, "[");
    options.listen = everywhere ? "0.0.0.0:0" : by_ipv6 ? "[::1]:0" : "127.0.0.1:0";
  }
  return Annotate(CheckListen(options.listen, security), "--listen");
}

/// What the coordinator is told of the box: its rates, with what this worker takes of its memory.
absl::Status ApplyBox(const WorkerFlags& flags, const CpuOptions& cpu, std::stop_token stop,
                      WorkerSessionOptions& options) {
  if (flags.box.empty()) return absl::OkStatus();
  const ComputeDevice& device = *options.device;
  BoxProbeOptions probe;
  probe.cpu = cpu;
  if (!options.model_directory.empty()) {
    probe.disk_directory = options.model_directory;
  } else if (!flags.model_cache.directory.empty()) {
    probe.disk_directory = flags.model_cache.directory;
  }
  probe.mirrors = options.mirrors;
  if (device.is_card()) probe.card = &device;
  probe.stop = std::move(stop);
  CARAVAN_ASSIGN_OR_RETURN(std::optional<Box> kept, KeptBox(flags.box, probe));
  if (!kept.has_value()) return absl::OkStatus();
  Box& box = *kept;
  if (!device.is_card()) {
    box.card = {};
    box.memory.bytes = options.memory_budget_bytes;
  } else if (box.card.count == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags.box,
                     ": has no card, and --device is one: without the file it is "
                     "measured anew"));
  } else {
    box.card.count = 1;
    box.card.bytes = device.memory_budget_bytes();
    box.card.total_bytes = std::max(box.card.total_bytes, box.card.bytes);
    box.memory.bytes =
        std::max<int64_t>(0, options.memory_budget_bytes - ProcessBytes(options.num_threads));
  }
  box.memory.total_bytes = std::max(box.memory.total_bytes, box.memory.bytes);
  // Figures alone: names, prices and sources are for people.
  static_cast<Box::Part&>(box.cpu) = static_cast<Box::Part&>(box.memory) =
      static_cast<Box::Part&>(box.disk) = static_cast<Box::Part&>(box.card) =
          static_cast<Box::Part&>(box.network) = {};
  box.name.clear();
  options.box = BoxToJson(box).dump();
  return absl::OkStatus();
}

absl::Status ApplyDefaults(WorkerFlags& flags, std::stop_token stop) {
  WorkerSessionOptions& options = flags.options;
  CARAVAN_RETURN_IF_ERROR(Annotate(CheckAddress(options.coordinator), "--coordinator"));
  if (!options.advertise.empty()) {
    CARAVAN_RETURN_IF_ERROR(Annotate(CheckAddress(options.advertise), "--advertise"));
  }
  CARAVAN_ASSIGN_OR_RETURN(options.security, flags.security.Load());
  CARAVAN_RETURN_IF_ERROR(ApplyListen(options));
  CARAVAN_RETURN_IF_ERROR(ApplyTrustedNetworks(flags.trusted_networks, options));
  CARAVAN_ASSIGN_OR_RETURN(const Machine machine, ProbeMachine());
  options.machine = machine.boot_id;
  if (options.name.empty()) options.name = machine.host_name;
  options.num_threads = flags.threads > 0 ? flags.threads : machine.num_cores;
  options.connect_timeout = absl::Seconds(flags.connect_timeout_s);
  if (flags.ram.empty()) {
    options.memory_budget_bytes = DefaultWorkerMemory(machine);
  } else {
    absl::StatusOr<int64_t> ram = ParseByteSize(flags.ram);
    if (!ram.ok()) return Annotate(ram.status(), "--ram");
    if (*ram == 0) return absl::InvalidArgumentError("--ram: must be more than 0");
    options.memory_budget_bytes = *ram;
  }
  CARAVAN_RETURN_IF_ERROR(flags.kv_disk.Check());
  options.kv_disk_bytes = flags.kv_disk.bytes;
  options.kv_disk_directory = flags.kv_disk.directory;
  CARAVAN_RETURN_IF_ERROR(ApplyKvArchive(flags, options));
  CARAVAN_RETURN_IF_ERROR(ApplyExpertFlags(flags));
  options.share_files = flags.share_files / 100;
  if (!flags.model_cache.directory.empty()) {
    absl::StatusOr<std::unique_ptr<ModelCache>> cache = ModelCache::Open(flags.model_cache);
    if (!cache.ok()) return Annotate(cache.status(), "--model-cache");
    options.model_cache = *std::move(cache);
  }
  CpuOptions cpu;
  cpu.num_threads = options.num_threads;
  cpu.isa = flags.isa;
  CARAVAN_ASSIGN_OR_RETURN(options.device, flags.device.Open(cpu));
  CARAVAN_RETURN_IF_ERROR(CheckCard(options));
  CARAVAN_RETURN_IF_ERROR(ApplyTransport(flags.transport, options));
  CARAVAN_RETURN_IF_ERROR(Annotate(ApplyBox(flags, cpu, std::move(stop), options), "--box"));
  const auto bar = std::make_shared<ProgressBar>("loading");
  options.show_progress = [bar](int64_t done, int64_t total) { bar->Show(done, total); };
  return absl::OkStatus();
}

absl::Status Work(WorkerFlags flags) {
  const StopSignals signals;
  CARAVAN_RETURN_IF_ERROR(ApplyDefaults(flags, signals.token()));
  std::optional<CertificateWatcher> certificates;
  if (flags.options.security.tls != nullptr) {
    certificates.emplace(flags.options.security.tls->directory());
  }
  LogInfo("worker_starting", {{"name", flags.options.name},
                              {"device", flags.options.device->Name()},
                              {"vram", FormatByteSize(flags.options.device->memory_budget_bytes())},
                              {"threads", flags.options.num_threads},
                              {"memory", FormatByteSize(flags.options.memory_budget_bytes)}});
  while (true) {
    const absl::Status status = RunWorkerSession(flags.options, signals.token());
    if (signals.token().stop_requested()) return absl::OkStatus();
    // A coordinator that went away may come back: join it anew, and give up only when it cannot be
    // reached within the connect timeout.
    const bool rejoin = status.code() == absl::StatusCode::kAborted ||
                        status.code() == absl::StatusCode::kCancelled ||
                        status.code() == absl::StatusCode::kUnavailable;
    if (!rejoin) return status;
    LogWarning("session_ended", {{"why", status.message()}});
    static_cast<void>(SleepUnlessStopped(kRejoinPause, signals.token()));
  }
}

}  // namespace

void AddWorkerCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command =
      app.add_subcommand("worker", "Hold one stage of a coordinator's model and run its steps");
  const auto flags = std::make_shared<WorkerFlags>();
  WorkerSessionOptions& options = flags->options;
  options.listen.clear();  // ApplyListen says
  AddConfigOption(*command);
  command->add_option("--coordinator", options.coordinator, "HOST:PORT of the coordinator")
      ->required();
  command->add_option("--listen", options.listen,
                      "HOST:PORT for the neighbours' activations; port 0 takes a free one. If not "
                      "given, any port, of all networks with --certs or --insecure, else of this "
                      "machine's loopback");
  flags->security.AddToServer(*command);
  command->add_option("--advertise", options.advertise,
                      "HOST:PORT that the neighbours dial, where it is not the host that the "
                      "coordinator sees with the port listened on");
  command->add_option("--name", options.name,
                      "What people call this worker; the host's name if not given");
  command->add_option(
      "--ram", flags->ram,
      "Memory for weights and KV cache, such as 24GiB; 80% of what is free if not given. Where "
      "experts stay on disk, and beside a card, of the whole process");
  command
      ->add_option("--box", flags->box,
                   "What this box can do, for plans by times: FILE as caravan probe --out writes "
                   "it. Where it is not there, the box is measured in a few seconds, before the "
                   "worker joins, and FILE is written; of disks, that of --model with those of "
                   "--mirror, else that of --model-cache, else of the current directory. Without "
                   "it, or where another worker has none as the "
                   "first plan is made, layers are shared out by memory")
      ->check(NotEmpty())
      ->type_name("FILE");
  command
      ->add_option("--offload", flags->offload,
                   "auto: routed experts that do not fit --ram stay on disk, in a local copy of a "
                   "packed model, and are read as steps want them; off: all weights must fit")
      ->check(CLI::IsMember({"auto", "off"}))
      ->type_name("auto|off")
      ->capture_default_str();
  flags->experts.AddTo(*command);
  command
      ->add_option("--expert-heat", flags->expert_heat,
                   "Where the worker keeps, for its next start, which experts on disk were wanted "
                   "most: a DIRECTORY; auto: that of the local copy of the model; off: nowhere")
      ->check(NotEmpty())
      ->type_name("auto|off|DIRECTORY")
      ->capture_default_str();
  command->add_option("--threads", flags->threads, "CPU threads; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  AddIsaOption(*command, flags->isa);
  flags->device.AddTo(*command);
  command
      ->add_option("--transport", flags->transport,
                   "How activations go to a neighbour: auto: from card to card by NCCL, which "
                   "does not encrypt, where both have one and share a machine or a "
                   "--trusted-network, else over TCP; nccl: so or not at all; tcp: never so")
      ->check(CLI::IsMember({"auto", "tcp", "nccl"}))
      ->type_name("auto|tcp|nccl")
      ->capture_default_str();
  command
      ->add_option("--trusted-network", flags->trusted_networks,
                   "CIDR, such as 10.0.0.0/8, of a network whose hosts may read activations; may "
                   "be repeated")
      ->type_name("CIDR")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  AddKvOption(*command, options.kv_dtype);
  flags->kv_disk.AddTo(*command);
  CLI::Option* const archive = AddByteSizeOption(
      *command, "--kv-archive", flags->kv_archive_bytes,
      "Disk for keys and values of prompts and replies, such as 50GiB, and for what other workers "
      "send of theirs: what begins like one of them is not computed again, in this run or a later "
      "one. Only where all workers have it");
  command
      ->add_option("--kv-replica", flags->kv_replica,
                   "Where what --kv-archive keeps lies: disk: on this worker's (the default with "
                   "--kv-archive); peer: on another worker's too, so that it outlives this box; "
                   "none: nowhere, without --kv-archive")
      ->check(CLI::IsMember({"peer", "disk", "none"}))
      ->type_name("peer|disk|none");
  command
      ->add_option("--kv-archive-dir", flags->kv_archive_directory,
                   "Where --kv-archive is; made if it is not there")
      ->type_name("DIRECTORY")
      ->check(NotEmpty())
      ->needs(archive)
      ->capture_default_str();
  CLI::Option* const model = command->add_option(
      "--model", options.model_directory,
      "Local copy of the model; if not given, the coordinator's directory where it is here too, "
      "else --model-cache, else its tensors over the network at each start");
  command
      ->add_option("--mirror", options.mirrors,
                   "Directory on another disk with some or all files of the packed model at "
                   "--model, so that both disks are read; may be repeated")
      ->type_name("DIRECTORY")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->needs(model);
  CLI::Option* const cache =
      command
          ->add_option(
              "--model-cache", flags->model_cache.directory,
              "Without a local copy of a packed model: where the files of this worker's "
              "layers are fetched to, from the coordinator and other workers, and kept for "
              "its next start; made if it is not there. A directory of this worker's own")
          ->type_name("DIRECTORY")
          ->check(NotEmpty())
          ->excludes(model);
  AddByteSizeOption(*command, "--model-cache-size", flags->model_cache.budget_bytes,
                    "Most that --model-cache may take, such as 200GiB: files that the stage does "
                    "not need make room, those used least recently first. If not given, what the "
                    "disk has")
      ->needs(cache);
  AddShareFilesOption(*command, flags->share_files);
  command
      ->add_option("--connect-timeout", flags->connect_timeout_s,
                   "Give up reaching the coordinator after SECONDS")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command->callback([flags, &body] { body = [flags] { return ReportStatus(Work(*flags)); }; });
}

}  // namespace caravan
