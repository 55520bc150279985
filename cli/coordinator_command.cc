// caravan coordinator: take in workers and jobs.

#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/output_file.h"
#include "base/status_macros.h"
#include "cli/aim_option.h"
#include "cli/commands.h"
#include "cli/security_flags.h"
#include "cli/stop_signals.h"
#include "coordinator/coordinator_server.h"

namespace caravan {
namespace {

struct CoordinatorFlags {
  CoordinatorOptions options;
  SecurityFlags security;
  std::string address_file;
  std::string http_address_file;
  double share_files = kDefaultSharePercent;
  double worker_timeout_s = 60;
  double heartbeat_timeout_s = 5;
  double rejoin_delay_s = 30;
};

/// A reader never sees half an address.
absl::Status WriteAddressFile(const std::string& flag, const std::string& path,
                              const std::string& address) {
  if (path.empty()) return absl::OkStatus();
  const auto write = [&]() -> absl::Status {
    CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, OutputFile::Create(path));
    CARAVAN_RETURN_IF_ERROR(file->Write(absl::StrCat(address, "\n")));
    return file->Commit();
  };
  return Annotate(write(), flag);
}

absl::Status Serve(CoordinatorFlags flags) {
  StopSignals signals;
  if (flags.options.http_listen.empty() &&
      !(flags.options.api_key_file.empty() && flags.http_address_file.empty())) {
    return absl::InvalidArgumentError("--api-key-file and --http-address-file need --http");
  }
  CARAVAN_ASSIGN_OR_RETURN(flags.options.security, flags.security.Load());
  CARAVAN_RETURN_IF_ERROR(
      Annotate(CheckListen(flags.options.listen, flags.options.security), "--listen"));
  flags.options.share_files = flags.share_files / 100;
  flags.options.worker_timeout = absl::Seconds(flags.worker_timeout_s);
  flags.options.heartbeat_timeout = absl::Seconds(flags.heartbeat_timeout_s);
  flags.options.rejoin_delay = absl::Seconds(flags.rejoin_delay_s);
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<CoordinatorServer> server,
                           CoordinatorServer::Start(flags.options));
  std::printf("caravan coordinator: listening on %s\n", server->address().c_str());
  if (!server->http_address().empty()) {
    std::printf("caravan coordinator: HTTP on http://%s%s\n", server->http_address().c_str(),
                flags.options.api_key_file.empty()
                    ? ", for this machine only (no --api-key-file was given)"
                    : "");
  }
  std::fflush(stdout);
  CARAVAN_RETURN_IF_ERROR(
      WriteAddressFile("--http-address-file", flags.http_address_file, server->http_address()));
  // Last: whoever waits for it may call.
  CARAVAN_RETURN_IF_ERROR(
      WriteAddressFile("--address-file", flags.address_file, server->address()));
  signals.Wait();
  server->Stop();
  return absl::OkStatus();
}

}  // namespace

void AddCoordinatorCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command =
      app.add_subcommand("coordinator", "Take in workers, split the model over them, and run jobs");
  const auto flags = std::make_shared<CoordinatorFlags>();
  CoordinatorOptions& options = flags->options;
  AddConfigOption(*command);
  command->add_option("--model", options.model_directory, kModelHelp)->required();
  command->add_option(
      "--tokenizer", options.tokenizer_directory,
      "Directory with another model's tokenizer.json and tokenizer_config.json, for "
      "a model that has none");
  command
      ->add_option("--listen", options.listen,
                   "HOST:PORT for workers and clients; port 0 takes a free one. Beyond this "
                   "machine's loopback only with --certs or --insecure")
      ->capture_default_str();
  flags->security.AddToServer(*command);
  command->add_option("--address-file", flags->address_file,
                      "Write HOST:PORT to this file once the coordinator listens");
  command->add_option("--http", options.http_listen,
                      "HOST:PORT for OpenAI's API, the dashboard and metrics; port 0 takes a free "
                      "one. Without it none is served");
  command->add_option("--http-address-file", flags->http_address_file,
                      "Write HTTP's HOST:PORT to this file once the coordinator listens");
  command->add_option("--api-key-file", options.api_key_file,
                      "File with the keys that HTTP clients must show, one a line; without it HTTP "
                      "listens on this machine's loopback only");
  command->add_option("--model-name", options.model_name,
                      "What HTTP clients call the model; without it the directory's name");
  command
      ->add_option("--state", options.state,
                   "Database of files and batches, which outlive the coordinator in it; one "
                   "coordinator a file")
      ->capture_default_str();
  command
      ->add_option("--workers", options.min_workers,
                   "Make the first plan when N workers have joined")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command
      ->add_option("--context", options.context_tokens,
                   "Longest prompt with its reply, in tokens; 0: as the model allows")
      ->capture_default_str();
  command
      ->add_option("--kv-tokens", options.kv_tokens,
                   "Tokens that the KV caches are to hold for all jobs together; 0: eight contexts")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
      ->capture_default_str();
  command
      ->add_option("--prefill-chunk", options.prefill_chunk,
                   "Most tokens of a prompt that one step takes")
      ->check(CLI::Range(1, 8192))
      ->capture_default_str();
  AddAimOption(*command, options.aim,
               "What the model is split for, where all workers know what their boxes can do "
               "(caravan worker --box): bulk: most tokens/s of all jobs together; interactive: "
               "most of one that decodes alone. Else by memory");
  AddSpeculateOption(*command, options.speculate);
  command->add_option("--max-jobs", options.max_queued_jobs, "Jobs that may be queued")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  AddShareFilesOption(*command, flags->share_files);
  command
      ->add_option("--worker-timeout", flags->worker_timeout_s,
                   "A job fails when no pipeline serves within SECONDS")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command
      ->add_option("--heartbeat-timeout", flags->heartbeat_timeout_s,
                   "A worker that is silent for SECONDS is lost")
      ->check(CLI::Range(0.1, 1e6))
      ->capture_default_str();
  command
      ->add_option("--rejoin-delay", flags->rejoin_delay_s,
                   "A worker that was lost three times in a row, with less than five minutes of "
                   "serving before each, stays spare for SECONDS when it comes back, and twice as "
                   "long each further time, up to ten times SECONDS; unless the others cannot do "
                   "without it. 0: all come back at once")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command->callback([flags, &body] { body = [flags] { return ReportStatus(Serve(*flags)); }; });
}

}  // namespace caravan
