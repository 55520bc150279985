#include "cli/retry.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// Between two tries to reach a coordinator that answers but does not serve, as when it is leaving.
constexpr absl::Duration kRetryInterval = absl::Milliseconds(100);

}  // namespace

absl::Status Retry(grpc::Channel& channel, const RetryOptions& options,
                   absl::FunctionRef<absl::Status(grpc::ClientContext&, bool& heard)> call) {
  absl::Time give_up = absl::InfiniteFuture();  // while it is here
  while (true) {
    bool heard = false;
    absl::Status status;
    {
      grpc::ClientContext context;
      const std::stop_callback cancel(options.stop, [&context] { context.TryCancel(); });
      status = call(context, heard);
    }
    if (status.ok()) return status;
    if (options.stop.stop_requested()) return absl::CancelledError("stopped");
    if (!options.went_away(status)) return NameCoordinator(status, options.flags);
    if (heard || give_up == absl::InfiniteFuture()) {
      give_up = absl::Now() + absl::Seconds(options.flags.connect_timeout_s);
      options.on_away(status);
    } else if (absl::Now() >= give_up) {
      return NameCoordinator(status, options.flags);
    }
    absl::SleepFor(kRetryInterval);
    ClientFlags rest = options.flags;
    rest.connect_timeout_s = std::max(0.0, absl::ToDoubleSeconds(give_up - absl::Now()));
    const absl::Status connected = WaitUntilConnected(channel, rest, options.stop);
    if (absl::IsUnavailable(connected)) {
      return absl::UnavailableError(absl::StrCat("coordinator ", options.flags.coordinator,
                                                 " went away and was not back within ",
                                                 options.flags.connect_timeout_s, " s"));
    }
    CARAVAN_RETURN_IF_ERROR(connected);
  }
}

}  // namespace caravan
