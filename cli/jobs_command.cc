// caravan jobs: what runs and what waits.

#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "caravan/v1/batches.grpc.pb.h"
#include "caravan/v1/jobs.grpc.pb.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/job_table.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

struct JobsFlags {
  ClientFlags client;
  bool all = false;
};

/// Oldest first, as jobs are listed.
absl::StatusOr<std::vector<v1::Batch>> ListBatches(const std::shared_ptr<grpc::Channel>& channel,
                                                   bool all) {
  const std::unique_ptr<v1::Batches::Stub> stub = v1::Batches::NewStub(channel);
  std::vector<v1::Batch> batches;
  v1::ListBatchesRequest request;
  request.set_limit(1000);
  v1::ListBatchesResponse page;
  do {
    grpc::ClientContext context;
    LimitCall(context);
    CARAVAN_RETURN_IF_ERROR(FromGrpcStatus(stub->ListBatches(&context, request, &page)));
    for (const v1::Batch& batch : page.batches()) {
      if (all || !HasEnded(batch)) batches.push_back(batch);
    }
    if (!page.batches().empty()) request.set_after(page.batches().rbegin()->batch_id());
  } while (page.has_more());
  return std::vector<v1::Batch>(batches.rbegin(), batches.rend());
}

absl::Status ShowJobs(const JobsFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, Connect(flags.client));
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<v1::Batch> batches, ListBatches(channel, flags.all));
  grpc::ClientContext context;
  LimitCall(context);
  v1::ListResponse jobs;
  CARAVAN_RETURN_IF_ERROR(FromGrpcStatus(v1::Jobs::NewStub(channel)->List(&context, {}, &jobs)));
  std::printf("%s\n%s", FormatJobs(jobs).c_str(), FormatBatches(batches, absl::Now()).c_str());
  return absl::OkStatus();
}

}  // namespace

void AddJobsCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command =
      app.add_subcommand("jobs", "List the jobs and batches that run or wait, oldest first");
  const auto flags = std::make_shared<JobsFlags>();
  AddConfigOption(*command);
  flags->client.AddTo(*command);
  command->add_flag("--all", flags->all, "Batches that have ended too");
  command->callback([flags, &body] { body = [flags] { return ReportStatus(ShowJobs(*flags)); }; });
}

}  // namespace caravan
