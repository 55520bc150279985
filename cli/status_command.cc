// caravan status: workers, stages and jobs of a running coordinator.

#include <cstdio>
#include <memory>

#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "caravan/v1/cluster.grpc.pb.h"
#include "caravan/v1/jobs.grpc.pb.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/plan_table.h"
#include "cluster/grpc_status.h"

#include <grpcpp/grpcpp.h>

#include "absl/time/clock.h"

namespace caravan {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(10);

std::string FormatJobs(const v1::ListResponse& jobs) {
  if (jobs.jobs().empty()) return "no jobs\n";
  constexpr char kRow[] = "%-6s  %-8s  %14s  %10s  %s\n";
  std::string text = absl::StrFormat(kRow, "JOB", "STATE", "PROMPT TOKENS", "GENERATED", "AGE");
  for (const v1::JobSummary& job : jobs.jobs()) {
    absl::StrAppend(
        &text,
        absl::StrFormat(kRow, absl::StrCat(job.job_id()),
                        job.state() == v1::JOB_STATE_RUNNING ? "running" : "queued",
                        absl::StrCat(job.prompt_tokens()), absl::StrCat(job.completion_tokens()),
                        absl::StrFormat("%.1f s", job.age_s())));
  }
  return text;
}

absl::Status ShowStatus(const ClientFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, Connect(flags));
  grpc::ClientContext cluster_context;
  cluster_context.set_deadline(absl::ToChronoTime(absl::Now() + kCallTimeout));
  v1::GetStatusResponse status;
  CARAVAN_RETURN_IF_ERROR(
      FromGrpcStatus(v1::Cluster::NewStub(channel)->GetStatus(&cluster_context, {}, &status)));
  grpc::ClientContext jobs_context;
  jobs_context.set_deadline(absl::ToChronoTime(absl::Now() + kCallTimeout));
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
