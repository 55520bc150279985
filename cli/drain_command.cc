// caravan drain: take a worker out of the pipeline while it serves, before its box is.

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "caravan/v1/cluster.grpc.pb.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/stop_signals.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(200);
// Longer than the coordinator waits by itself, after a pipeline broke, before it plans anew.
constexpr absl::Duration kMostWaiting = absl::Seconds(15);

struct DrainFlags {
  ClientFlags client;
  std::string worker;
  bool undo = false;
};

/// Waits until the pipeline serves without the worker. One that is gone is drained too. Gives up
/// where there is no plan for kMostWaiting.
absl::Status WaitUntilDrained(v1::Cluster::Stub& cluster, uint32_t worker_id,
                              const std::stop_token& stop) {
  std::optional<absl::Duration> waiting_since;  // on the clock; nullopt: there is a plan
  while (true) {
    grpc::ClientContext context;
    LimitCall(context);
    v1::GetStatusResponse status;
    CARAVAN_RETURN_IF_ERROR(FromGrpcStatus(cluster.GetStatus(&context, {}, &status)));
    const auto worker = std::find_if(
        status.workers().begin(), status.workers().end(),
        [worker_id](const v1::WorkerStatus& each) { return each.worker_id() == worker_id; });
    const bool is_free = worker == status.workers().end() || !worker->has_stage();
    if (is_free && status.state() == v1::PIPELINE_STATE_SERVING) return absl::OkStatus();
    const absl::Duration now = SteadyClock().Now();
    if (status.state() != v1::PIPELINE_STATE_WAITING) {
      waiting_since.reset();
    } else if (!waiting_since.has_value()) {
      waiting_since = now;
    }
    if (is_free && waiting_since.has_value() && now - *waiting_since > kMostWaiting) {
      return absl::UnavailableError(absl::StrCat(
          "it holds no stage and can be stopped, but nothing serves: ", status.pipeline_state()));
    }
    if (stop.stop_requested()) {
      return absl::CancelledError("the worker is being drained all the same");
    }
    absl::SleepFor(kPollInterval);
  }
}

absl::Status Drain(const DrainFlags& flags) {
  const StopSignals signals;
  CARAVAN_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                           Connect(flags.client, signals.token()));
  const std::unique_ptr<v1::Cluster::Stub> cluster = v1::Cluster::NewStub(channel);
  grpc::ClientContext context;
  LimitCall(context);
  v1::DrainRequest request;
  request.set_worker(flags.worker);
  request.set_undo(flags.undo);
  v1::DrainResponse response;
  CARAVAN_RETURN_IF_ERROR(FromGrpcStatus(cluster->Drain(&context, request, &response)));
  if (flags.undo) {
    std::printf("%s may get a stage again\n", flags.worker.c_str());
    return absl::OkStatus();
  }
  CARAVAN_RETURN_IF_ERROR(WaitUntilDrained(*cluster, response.worker_id(), signals.token()));
  std::printf("%s holds no stage: it can be stopped\n", flags.worker.c_str());
  return absl::OkStatus();
}

}  // namespace

void AddDrainCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "drain", "Take a worker out of the pipeline, so that its box can be stopped");
  const auto flags = std::make_shared<DrainFlags>();
  AddConfigOption(*command);
  flags->client.AddTo(*command);
  command->add_option("worker", flags->worker, "Its name or number, as caravan status shows them")
      ->required();
  command->add_flag("--undo", flags->undo, "Let it have a stage again");
  command->callback([flags, &body] { body = [flags] { return ReportStatus(Drain(*flags)); }; });
}

}  // namespace caravan
