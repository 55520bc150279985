#ifndef CARAVAN_CLI_RETRY_H_
#define CARAVAN_CLI_RETRY_H_

// Calls that outlive their connection: one that ends because somebody went away is made again.

#include <functional>
#include <stop_token>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "cli/client.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"

namespace caravan {

struct RetryOptions {
  ClientFlags flags;
  std::stop_token stop;  // ends the call and the waiting, from any thread
  /// Whether a call that ended so may go on later.
  std::function<bool(const absl::Status&)> went_away;
  /// The call broke, and is tried again from now on. Told once for each time that it broke.
  std::function<void(const absl::Status& why)> on_away;
};

/// Makes `call` until it ends other than by going away. It sets `heard` whenever it gets what it
/// had not before. Gives up when nothing was heard for flags.connect_timeout_s after the call
/// broke. Errors: the call's last, an Unavailable with the coordinator's address; Cancelled - by
/// the stop;
///         Unavailable - the coordinator was not back in time.
absl::Status Retry(grpc::Channel& channel, const RetryOptions& options,
                   absl::FunctionRef<absl::Status(grpc::ClientContext&, bool& heard)> call);

}  // namespace caravan

#endif  // CARAVAN_CLI_RETRY_H_
