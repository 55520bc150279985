#include "cli/bench_cluster.h"

#include <sched.h>
#include <stdlib.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/output_file.h"
#include "base/status_macros.h"
#include "cli/command.h"
#include "cli/stand_in_tokenizer.h"
#include "model/stored_model.h"

namespace caravan {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(60);
constexpr absl::Duration kStopTimeout = absl::Seconds(10);

/// While it lives, this thread runs on one core, and so does whatever process it starts for ever.
class PinnedScope {
 public:
  explicit PinnedScope(int core) {
    ::sched_getaffinity(0, sizeof(before_), &before_);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    ok_ = ::sched_setaffinity(0, sizeof(one), &one) == 0;
  }
  ~PinnedScope() { ::sched_setaffinity(0, sizeof(before_), &before_); }
  PinnedScope(const PinnedScope&) = delete;
  PinnedScope& operator=(const PinnedScope&) = delete;

  bool ok() const { return ok_; }

 private:
  cpu_set_t before_;
  bool ok_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BenchCluster>> BenchCluster::Start(const Options& options) {
  std::unique_ptr<BenchCluster> cluster(new BenchCluster);
  CARAVAN_RETURN_IF_ERROR(cluster->Launch(options));
  return cluster;
}

absl::Status BenchCluster::Launch(const Options& options) {
  std::string pattern = (std::filesystem::temp_directory_path() / "caravan-bench-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make ", pattern));
  }
  directory_ = pattern;

  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  const std::string address_file = JoinPath(directory_, "address");
  const std::string http_address_file = JoinPath(directory_, "http-address");
  std::vector<std::string> coordinator = {self, "coordinator", "--model", options.model, "--listen",
                                          "127.0.0.1:0", "--http", "127.0.0.1:0", "--state",
                                          JoinPath(directory_, "caravan.db"), "--workers",
                                          absl::StrCat(options.workers), "--http-address-file",
                                          http_address_file, "--address-file", address_file,
                                          // Whoever waits looks after the processes in between.
                                          "--worker-timeout", "1"};
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<std::string> tokenizer,
                           TokenizerArguments(options.model));
  coordinator.insert(coordinator.end(), tokenizer.begin(), tokenizer.end());
  coordinator.insert(coordinator.end(), options.coordinator_arguments.begin(),
                     options.coordinator_arguments.end());
  CARAVAN_RETURN_IF_ERROR(Spawn(std::move(coordinator)));
  CARAVAN_ASSIGN_OR_RETURN(address_, WaitForAddress(address_file));
  CARAVAN_ASSIGN_OR_RETURN(http_address_, WaitForAddress(http_address_file));
  const int num_cores = static_cast<int>(std::thread::hardware_concurrency());
  for (int i = 0; i < options.workers; ++i) {
    std::vector<std::string> worker = {self,
                                       "worker",
                                       "--coordinator",
                                       address_,
                                       "--listen",
                                       "127.0.0.1:0",
                                       "--threads",
                                       absl::StrCat(options.threads),
                                       "--kv",
                                       KvOptionName(options.kv_dtype),
                                       "--isa",
                                       IsaOptionName(options.isa)};
    if (!options.pin) {
      CARAVAN_RETURN_IF_ERROR(Spawn(std::move(worker)));
      continue;
    }
    const PinnedScope pinned(i % num_cores);
    if (!pinned.ok()) {
      return absl::InternalError(absl::StrCat("a worker cannot be pinned to core ", i % num_cores));
    }
    CARAVAN_RETURN_IF_ERROR(Spawn(std::move(worker)));
  }
  return absl::OkStatus();
}

BenchCluster::~BenchCluster() {
  for (Subprocess& process : processes_) process.Signal(SIGTERM);
  for (Subprocess& process : processes_) process.Wait(kStopTimeout);
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

absl::Status BenchCluster::Check() {
  for (Subprocess& process : processes_) {
    if (!process.Wait(absl::ZeroDuration()).has_value()) continue;
    return absl::UnavailableError(
        "the coordinator or a worker has ended; caravan worker with the same options says why");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> BenchCluster::TokenizerArguments(
    const std::string& model) const {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> files, OpenStoredModel(model));
  if (!NeedsStandIn(*files)) return std::vector<std::string>();
  CARAVAN_ASSIGN_OR_RETURN(const StandInTokenizer stand_in, MakeStandInTokenizer(files->config()));
  for (const auto& [name, text] : {std::pair{"tokenizer.json", &stand_in.tokenizer_json},
                                   std::pair{"tokenizer_config.json", &stand_in.config_json}}) {
    CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file,
                             OutputFile::Create(JoinPath(directory_, name)));
    CARAVAN_RETURN_IF_ERROR(file->Write(*text));
    CARAVAN_RETURN_IF_ERROR(file->Commit());
  }
  return std::vector<std::string>{"--tokenizer", directory_};
}

absl::Status BenchCluster::Spawn(std::vector<std::string> command) {
  Subprocess::Options options;
  options.command = std::move(command);
  CARAVAN_ASSIGN_OR_RETURN(Subprocess process, Subprocess::Start(options));
  processes_.push_back(std::move(process));
  return absl::OkStatus();
}

absl::StatusOr<std::string> BenchCluster::WaitForAddress(const std::string& address_file) {
  const absl::Duration deadline = SteadyClock().Now() + kStartTimeout;
  while (!FileExists(address_file)) {
    if (processes_.front().Wait(absl::Milliseconds(5)).has_value()) {
      return absl::InvalidArgumentError(
          "the coordinator does not start; run caravan coordinator by hand to see why");
    }
    if (SteadyClock().Now() > deadline) {
      return absl::DeadlineExceededError("the coordinator does not listen");
    }
  }
  std::ifstream in(address_file);
  std::string address;
  std::getline(in, address);
  return address;
}

}  // namespace caravan
