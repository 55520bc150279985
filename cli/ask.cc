#include "cli/ask.h"

#include <grpcpp/grpcpp.h>

#include "absl/strings/str_cat.h"
#include "cluster/grpc_status.h"

namespace caravan {

absl::Status Ask(v1::Jobs::Stub& jobs, const v1::SubmitRequest& request, std::stop_token stop,
                 ReplyPrinter& printer, Reply& reply) {
  grpc::ClientContext context;
  // Hanging up cancels the job.
  const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
  const auto events = jobs.Submit(&context, request);
  v1::JobEvent event;
  while (events->Read(&event)) {
    if (event.has_accepted()) {
      reply.job_id = event.accepted().job_id();
    } else if (event.has_delta()) {
      printer.Print(event.delta());
      if (event.delta().part() == v1::TEXT_PART_ANSWER) reply.answer += event.delta().text();
    } else if (event.has_finished()) {
      reply.finished = event.finished();
    }
  }
  printer.EndLine();
  const absl::Status status = FromGrpcStatus(events->Finish());
  if (!status.ok() && stop.stop_requested()) {
    return absl::CancelledError(absl::StrCat("job ", reply.job_id, " is cancelled"));
  }
  return status;
}

}  // namespace caravan
