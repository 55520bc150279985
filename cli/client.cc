#include "cli/client.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "cluster/address.h"
#include "cluster/grpc_transport.h"

namespace caravan {
namespace {

// So long at most a stop request is not heeded.
constexpr absl::Duration kStopCheckInterval = absl::Milliseconds(100);

}  // namespace

void ClientFlags::AddTo(CLI::App& command) {
  command.add_option("--coordinator", coordinator, "HOST:PORT of the coordinator")
      ->capture_default_str();
  command.add_option("--connect-timeout", connect_timeout_s, "Give up reaching it after SECONDS")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const ClientFlags& flags,
                                                       std::stop_token stop) {
  CARAVAN_RETURN_IF_ERROR(Annotate(CheckAddress(flags.coordinator), "--coordinator"));
  std::shared_ptr<grpc::Channel> channel = MakeGrpcChannel(flags.coordinator);
  CARAVAN_RETURN_IF_ERROR(WaitUntilConnected(*channel, flags, std::move(stop)));
  return channel;
}

absl::Status WaitUntilConnected(grpc::Channel& channel, const ClientFlags& flags,
                                std::stop_token stop) {
  const absl::Time deadline = absl::Now() + absl::Seconds(flags.connect_timeout_s);
  while (!stop.stop_requested()) {
    const absl::Time until = std::min(deadline, absl::Now() + kStopCheckInterval);
    if (channel.WaitForConnected(absl::ToChronoTime(until))) return absl::OkStatus();
    if (until == deadline) {
      return absl::UnavailableError(absl::StrCat("no coordinator answers at ", flags.coordinator,
                                                 " within ", flags.connect_timeout_s, " s"));
    }
  }
  return absl::CancelledError(
      absl::StrCat("stopped before a coordinator answered at ", flags.coordinator));
}

absl::Status NameCoordinator(const absl::Status& status, const ClientFlags& flags) {
  if (!absl::IsUnavailable(status)) return status;
  return Annotate(status, absl::StrCat("coordinator ", flags.coordinator));
}

void LimitCall(grpc::ClientContext& context) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + kShortCallTimeout));
}

}  // namespace caravan
