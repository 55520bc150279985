#ifndef CARAVAN_CLI_ASK_H_
#define CARAVAN_CLI_ASK_H_

// One prompt to a coordinator, and its reply as it comes.

#include <cstdint>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "caravan/v1/jobs.grpc.pb.h"
#include "cli/reply_printer.h"

namespace caravan {

/// What there is of a reply.
struct Reply {
  uint64_t job_id = 0;       // 0: the job was not accepted
  std::string answer;        // without the thought
  v1::JobFinished finished;  // all zero: it did not come to its end
};

/// Submits and prints; fills in `reply` also where it fails. A stop cancels the job.
/// Errors: as Jobs.Submit; Cancelled - by `stop`.
absl::Status Ask(v1::Jobs::Stub& jobs, const v1::SubmitRequest& request, std::stop_token stop,
                 ReplyPrinter& printer, Reply& reply);

}  // namespace caravan

#endif  // CARAVAN_CLI_ASK_H_
