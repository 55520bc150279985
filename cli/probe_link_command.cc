// caravan probe link: what the network to another box gives. caravan probe listen: its far end,
// where neither a coordinator nor a worker runs yet.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/byte_size.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/link_probe.h"
#include "cli/security_flags.h"
#include "cli/stop_signals.h"
#include "cluster/grpc_transport.h"
#include "cluster/probe_service.h"

namespace caravan {
namespace {

struct ProbeLinkFlags {
  std::string address;
  SecurityFlags security;
  int64_t activation_bytes = LinkProbeOptions().activation_bytes;
  double seconds = absl::ToDoubleSeconds(LinkProbeOptions().duration);
  double connect_timeout_s = absl::ToDoubleSeconds(LinkProbeOptions().connect_timeout);
  bool json = false;
};

absl::Status RunProbeLink(const ProbeLinkFlags& flags) {
  const StopSignals signals;
  LinkProbeOptions options;
  options.address = flags.address;
  CARAVAN_ASSIGN_OR_RETURN(options.security, flags.security.Load());
  options.activation_bytes = flags.activation_bytes;
  options.duration = absl::Seconds(flags.seconds);
  options.connect_timeout = absl::Seconds(flags.connect_timeout_s);
  options.stop = signals.token();
  if (options.activation_bytes > kMostEchoBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("--activations: ", FormatByteSize(options.activation_bytes), " is more than ",
                     FormatByteSize(kMostEchoBytes)));
  }
  std::fprintf(stderr, "measuring the link to %s for about %.3g s\n", flags.address.c_str(),
               4 * flags.seconds);
  CARAVAN_ASSIGN_OR_RETURN(const LinkProbe probe, ProbeLink(options));
  const std::string text = flags.json ? LinkProbeJson(probe).dump() + "\n" : LinkProbeTable(probe);
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

absl::Status RunProbeListen(const std::string& address, const SecurityFlags& flags) {
  StopSignals signals;
  ProbeService service;
  CARAVAN_ASSIGN_OR_RETURN(const TransportSecurity security, flags.Load());
  CARAVAN_ASSIGN_OR_RETURN(const GrpcServer started,
                           StartGrpcServer(address, {&service}, security));
  std::printf(
      "listening on %s:%d until interrupted; from another box: caravan probe link HOST:%d\n",
      address.substr(0, address.rfind(':')).c_str(), started.port, started.port);
  std::fflush(stdout);
  signals.Wait();
  ShutDownGrpcServer(*started.server, absl::ZeroDuration());
  return absl::OkStatus();
}

}  // namespace

void AddProbeLinkCommand(CLI::App& probe, CommandBody& body) {
  CLI::App* const command = probe.add_subcommand(
      "link", "Measure latency and rate of the network between this box and another");
  const auto flags = std::make_shared<ProbeLinkFlags>();
  AddConfigOption(*command);
  command
      ->add_option("address", flags->address,
                   "HOST:PORT of a coordinator, a worker or caravan probe listen")
      ->required();
  flags->security.AddTo(*command);
  AddByteSizeOption(*command, "--activations", flags->activation_bytes,
                    "What a hop carries of a token: 4 bytes for each of hidden_size values")
      ->default_str("28KiB");
  command->add_option("--seconds", flags->seconds, "For each of four measurements")
      ->check(CLI::Range(0.01, absl::ToDoubleSeconds(kLongestCount)))
      ->capture_default_str();
  command
      ->add_option("--connect-timeout", flags->connect_timeout_s,
                   "Give up reaching it after SECONDS")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "One line of JSON, for programs");
  command->callback(
      [flags, &body] { body = [flags] { return ReportStatus(RunProbeLink(*flags)); }; });
}

void AddProbeListenCommand(CLI::App& probe, CommandBody& body) {
  CLI::App* const command = probe.add_subcommand(
      "listen", "Be the far end of caravan probe link, where no coordinator or worker runs");
  const auto address = std::make_shared<std::string>("0.0.0.0:7071");
  const auto security = std::make_shared<SecurityFlags>();
  AddConfigOption(*command);
  command->add_option("address", *address, "HOST:PORT to listen on; port 0 takes a free one")
      ->capture_default_str();
  security->AddToServer(*command);
  command->callback([address, security, &body] {
    body = [address, security] { return ReportStatus(RunProbeListen(*address, *security)); };
  });
}

}  // namespace caravan
