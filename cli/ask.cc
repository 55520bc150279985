#include "cli/ask.h"

#include <grpcpp/grpcpp.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "caravan/v1/jobs.grpc.pb.h"
#include "cli/retry.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

/// One try. What it gets of the reply goes into the request too, for the next.
absl::Status Submit(v1::Jobs::Stub& jobs, grpc::ClientContext& context, v1::SubmitRequest& request,
                    ReplyPrinter& printer, Reply& reply, bool& heard) {
  const auto events = jobs.Submit(&context, request);
  v1::JobEvent event;
  while (events->Read(&event)) {
    if (event.has_accepted()) {
      reply.job_id = event.accepted().job_id();
    } else if (event.has_delta()) {
      heard = true;
      const v1::TextDelta& delta = event.delta();
      request.mutable_reply_token_ids()->MergeFrom(delta.token_ids());
      printer.Print(delta);
      if (delta.part() == v1::TEXT_PART_ANSWER) reply.answer += delta.text();
    } else if (event.has_finished()) {
      reply.finished = event.finished();
    }
  }
  return FromGrpcStatus(events->Finish());
}

}  // namespace

absl::Status Ask(const std::shared_ptr<grpc::Channel>& channel, const ClientFlags& flags,
                 v1::SubmitRequest request, std::stop_token stop, ReplyPrinter& printer,
                 Reply& reply) {
  const RetryOptions options = {
      .flags = flags,
      .stop = stop,
      // Without a token there is nothing to go on with, and it may be that no pipeline came to be.
      .went_away =
          [&request](const absl::Status& status) {
            return absl::IsUnavailable(status) && request.reply_token_ids_size() > 0;
          },
      .on_away =
          [](const absl::Status& why) {
            std::fputs(absl::StrCat("\nThe reply broke off (", why.message(),
                                    "); waiting to go on with it.\n")
                           .c_str(),
                       stderr);
          }};
  const std::unique_ptr<v1::Jobs::Stub> jobs = v1::Jobs::NewStub(channel);
  const absl::Status status =
      Retry(*channel, options, [&](grpc::ClientContext& context, bool& heard) {
        return Submit(*jobs, context, request, printer, reply, heard);
      });
  printer.EndLine();
  if (!status.ok() && stop.stop_requested()) {
    return absl::CancelledError(absl::StrCat("job ", reply.job_id, " is cancelled"));
  }
  return status;
}

}  // namespace caravan
