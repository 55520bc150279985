// caravan cancel: end a job or a batch.

#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "caravan/v1/batches.grpc.pb.h"
#include "caravan/v1/jobs.grpc.pb.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

struct CancelFlags {
  ClientFlags client;
  std::string id;
};

absl::Status CancelJob(const std::shared_ptr<grpc::Channel>& channel, uint64_t job_id) {
  grpc::ClientContext context;
  LimitCall(context);
  v1::CancelRequest request;
  request.set_job_id(job_id);
  v1::CancelResponse response;
  CARAVAN_RETURN_IF_ERROR(
      FromGrpcStatus(v1::Jobs::NewStub(channel)->Cancel(&context, request, &response)));
  std::printf("job %llu is cancelled\n", static_cast<unsigned long long>(job_id));
  return absl::OkStatus();
}

absl::Status CancelBatch(const std::shared_ptr<grpc::Channel>& channel,
                         const std::string& batch_id) {
  grpc::ClientContext context;
  LimitCall(context);
  v1::CancelBatchRequest request;
  request.set_batch_id(batch_id);
  v1::CancelBatchResponse response;
  CARAVAN_RETURN_IF_ERROR(
      FromGrpcStatus(v1::Batches::NewStub(channel)->CancelBatch(&context, request, &response)));
  const bool ended = response.batch().state() == v1::BATCH_STATE_CANCELLED;
  std::printf("%s is %s\n", batch_id.c_str(), ended ? "cancelled" : "being cancelled");
  return absl::OkStatus();
}

absl::Status Cancel(const CancelFlags& flags) {
  uint64_t job_id = 0;
  const bool is_batch = absl::StartsWith(flags.id, "batch_");
  if (!is_batch && !absl::SimpleAtoi(flags.id, &job_id)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", flags.id, "\" is neither a job's number nor a batch's id; ",
                     "caravan jobs lists both"));
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, Connect(flags.client));
  return is_batch ? CancelBatch(channel, flags.id) : CancelJob(channel, job_id);
}

}  // namespace

void AddCancelCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand("cancel", "End a job or a batch");
  const auto flags = std::make_shared<CancelFlags>();
  AddConfigOption(*command);
  flags->client.AddTo(*command);
  command->add_option("id", flags->id, "A job's number, or a batch's id (batch_...)")->required();
  command->callback([flags, &body] { body = [flags] { return ReportStatus(Cancel(*flags)); }; });
}

}  // namespace caravan
