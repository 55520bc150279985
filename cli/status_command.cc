// caravan status: workers, stages and jobs of a running coordinator.

#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <memory>

#include "base/status_macros.h"
#include "caravan/v1/cluster.grpc.pb.h"
#include "caravan/v1/jobs.grpc.pb.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/job_table.h"
#include "cli/plan_table.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

absl::Status ShowStatus(const ClientFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, Connect(flags));
  grpc::ClientContext cluster_context;
  LimitCall(cluster_context);
  v1::GetStatusResponse status;
  CARAVAN_RETURN_IF_ERROR(
      FromGrpcStatus(v1::Cluster::NewStub(channel)->GetStatus(&cluster_context, {}, &status)));
  grpc::ClientContext jobs_context;
  LimitCall(jobs_context);
  v1::ListResponse jobs;
  CARAVAN_RETURN_IF_ERROR(
      FromGrpcStatus(v1::Jobs::NewStub(channel)->List(&jobs_context, {}, &jobs)));
  std::printf("%s%s", FormatStatus(status).c_str(), FormatJobs(jobs).c_str());
  return absl::OkStatus();
}

}  // namespace

void AddStatusCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command =
      app.add_subcommand("status", "Show a coordinator's workers, stages and jobs");
  const auto flags = std::make_shared<ClientFlags>();
  AddConfigOption(*command);
  flags->AddTo(*command);
  command->callback(
      [flags, &body] { body = [flags] { return ReportStatus(ShowStatus(*flags)); }; });
}

}  // namespace caravan
