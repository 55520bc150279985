#include "cli/bench_cluster.h"

#include <grpcpp/grpcpp.h>
#include <sched.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/output_file.h"
#include "base/status_macros.h"
#include "caravan/v1/cluster.grpc.pb.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/local_pipeline.h"
#include "cli/stand_in_tokenizer.h"
#include "cluster/grpc_status.h"
#include "model/stored_model.h"
#include "model/stored_model_cost.h"

namespace caravan {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(60);
constexpr absl::Duration kStopTimeout = absl::Seconds(10);
// Longer than a coordinator waits before it tries again with workers that failed.
constexpr absl::Duration kNoPlanTimeout = absl::Seconds(8);

std::string Self() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

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

absl::Status CheckBenchWorkers(const StoredModel& model, absl::Span<const int> workers,
                               DType kv_dtype) {
  for (const int count : workers) {
    LocalPipeline::Options options;
    options.num_workers = count;
    options.kv_dtype = kv_dtype;
    CARAVAN_RETURN_IF_ERROR(LocalPipeline::CheckOptions(model, options));
  }
  return CostOfStoredModel(model).status();
}

absl::Status BenchCluster::Launch(const Options& options) {
  num_workers_ = options.workers;
  std::string pattern = (std::filesystem::temp_directory_path() / "caravan-bench-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make ", pattern));
  }
  directory_ = pattern;

  const std::string address_file = JoinPath(directory_, "address");
  const std::string http_address_file = JoinPath(directory_, "http-address");
  std::vector<std::string> coordinator = {
      Self(), "coordinator", "--model", options.model, "--listen", "127.0.0.1:0", "--http",
      "127.0.0.1:0", "--state", JoinPath(directory_, "caravan.db"), "--workers",
      absl::StrCat(options.workers), "--http-address-file", http_address_file, "--address-file",
      address_file,
      // Whoever waits looks after the processes in between.
      "--worker-timeout", "1"};
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<std::string> tokenizer,
                           TokenizerArguments(options.model));
  coordinator.insert(coordinator.end(), tokenizer.begin(), tokenizer.end());
  coordinator.insert(coordinator.end(), options.coordinator_arguments.begin(),
                     options.coordinator_arguments.end());
  CARAVAN_RETURN_IF_ERROR(Spawn(options, "coordinator", std::move(coordinator)));
  CARAVAN_ASSIGN_OR_RETURN(address_, WaitForAddress(address_file));
  CARAVAN_ASSIGN_OR_RETURN(http_address_, WaitForAddress(http_address_file));
  for (int i = 0; i < options.workers; ++i) {
    CARAVAN_RETURN_IF_ERROR(LaunchWorker(options, i));
    // Stages are given in the order of joining.
    if (i + 1 < options.workers) CARAVAN_RETURN_IF_ERROR(WaitForWorkers(i + 1));
  }
  return absl::OkStatus();
}

absl::Status BenchCluster::LaunchWorker(const Options& options, int index) {
  std::string coordinator = address_;
  std::string listen = "127.0.0.1:0";
  std::string advertise;
  if (options.link.has_value() && index > 0) {
    CARAVAN_ASSIGN_OR_RETURN(links_.emplace_back(), ShapedLink::Open(*options.link));
    links_.back()->ConnectTo(address_);
    coordinator = links_.back()->address();
    CARAVAN_ASSIGN_OR_RETURN(links_.emplace_back(), ShapedLink::Open(*options.link));
    // The same port of another of loopback's addresses.
    advertise = links_.back()->address();
    listen = absl::StrCat("127.0.0.", 1 + index, advertise.substr(advertise.rfind(':')));
    links_.back()->ConnectTo(listen);
  }
  std::vector<std::string> worker = {Self(),          "worker",
                                     "--coordinator", coordinator,
                                     "--listen",      listen,
                                     "--name",        absl::StrCat("box-", index),
                                     "--threads",     absl::StrCat(options.threads),
                                     "--kv",          KvOptionName(options.kv_dtype),
                                     "--isa",         IsaOptionName(options.isa)};
  if (!advertise.empty()) worker.insert(worker.end(), {"--advertise", advertise});
  worker.insert(worker.end(), options.worker_arguments.begin(), options.worker_arguments.end());
  if (!options.pin) return Spawn(options, absl::StrCat(index), std::move(worker));
  const int core = index % static_cast<int>(std::thread::hardware_concurrency());
  const PinnedScope pinned(core);
  if (!pinned.ok()) {
    return absl::InternalError(absl::StrCat("a worker cannot be pinned to core ", core));
  }
  return Spawn(options, absl::StrCat(index), std::move(worker));
}

absl::Status BenchCluster::WaitForWorkers(int count) {
  const absl::Duration deadline = SteadyClock().Now() + kStartTimeout;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const v1::GetStatusResponse status, Status());
    if (status.workers_size() >= count) return absl::OkStatus();
    // The newest process.
    const size_t last = processes_.size() - 1;
    if (processes_[last].Wait(absl::Milliseconds(5)).has_value()) {
      return absl::UnavailableError(absl::StrCat("a worker has ended: ", LastWords(last)));
    }
    if (SteadyClock().Now() > deadline) {
      return absl::DeadlineExceededError("a worker does not join");
    }
  }
}

BenchCluster::~BenchCluster() {
  for (Subprocess& process : processes_) process.Signal(SIGTERM);
  for (Subprocess& process : processes_) process.Wait(kStopTimeout);
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

absl::Status BenchCluster::Check() {
  for (size_t i = 0; i < processes_.size(); ++i) {
    if (!processes_[i].Wait(absl::ZeroDuration()).has_value()) continue;
    return absl::UnavailableError(
        absl::StrCat(i == 0 ? "the coordinator" : "a worker", " has ended: ", LastWords(i)));
  }
  CARAVAN_ASSIGN_OR_RETURN(const v1::GetStatusResponse status, Status());
  if (status.workers_size() < num_workers_ || status.plan_version() != 0) {
    without_plan_since_ = absl::InfiniteDuration();
    return absl::OkStatus();
  }
  const absl::Duration now = SteadyClock().Now();
  without_plan_since_ = std::min(without_plan_since_, now);
  if (now - without_plan_since_ < kNoPlanTimeout) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the cluster does not come to serve: ", status.pipeline_state()));
}

absl::StatusOr<v1::GetStatusResponse> BenchCluster::Status() const {
  ClientFlags client;
  client.coordinator = address_;
  CARAVAN_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, Connect(client));
  grpc::ClientContext context;
  LimitCall(context);
  v1::GetStatusResponse status;
  CARAVAN_RETURN_IF_ERROR(
      FromGrpcStatus(v1::Cluster::NewStub(channel)->GetStatus(&context, {}, &status)));
  return status;
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

absl::Status BenchCluster::Spawn(const Options& options, const std::string& box,
                                 std::vector<std::string> command) {
  Subprocess::Options child;
  if (!options.box_command.empty()) child.command = {options.box_command, box};
  child.command.insert(child.command.end(), command.begin(), command.end());
  child.stderr_path = ErrorsPath(processes_.size());
  CARAVAN_ASSIGN_OR_RETURN(Subprocess process, Subprocess::Start(child));
  processes_.push_back(std::move(process));
  return absl::OkStatus();
}

std::string BenchCluster::ErrorsPath(size_t i) const {
  return JoinPath(directory_, absl::StrCat("errors-", i));
}

std::string BenchCluster::LastWords(size_t i) const {
  std::ifstream in(ErrorsPath(i));
  std::string last = "it does not say why";
  for (std::string line; std::getline(in, line);) {
    if (!line.empty()) last = std::move(line);
  }
  return std::string(absl::StripPrefix(last, "caravan: "));
}

absl::StatusOr<std::string> BenchCluster::WaitForAddress(const std::string& address_file) {
  const absl::Duration deadline = SteadyClock().Now() + kStartTimeout;
  while (!FileExists(address_file)) {
    if (processes_.front().Wait(absl::Milliseconds(5)).has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the coordinator does not start: ", LastWords(0)));
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
