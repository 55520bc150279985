#ifndef CARAVAN_CLI_ASK_H_
#define CARAVAN_CLI_ASK_H_

// One prompt to a coordinator, and its reply as it comes. A reply that had begun and breaks off,
// because the coordinator or a worker went away, goes on where it stopped: this side remembers what
// it got.

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "caravan/v1/jobs.pb.h"
#include "cli/client.h"
#include "cli/reply_printer.h"
#include "grpcpp/channel.h"

namespace caravan {

/// What there is of a reply.
struct Reply {
  uint64_t job_id = 0;       // of the last try; 0: the job was not accepted
  std::string answer;        // without the thought
  v1::JobFinished finished;  // all zero: it did not come to its end
};

/// Submits and prints; fills in `reply` also where it fails. A stop cancels the job. Standard error
/// tells of a reply that broke off; it is given up when nothing came of it for
/// flags.connect_timeout_s.
/// Errors: as Jobs.Submit; Cancelled - by `stop`.
absl::Status Ask(const std::shared_ptr<grpc::Channel>& channel, const ClientFlags& flags,
                 v1::SubmitRequest request, std::stop_token stop, ReplyPrinter& printer,
                 Reply& reply);

}  // namespace caravan

#endif  // CARAVAN_CLI_ASK_H_
