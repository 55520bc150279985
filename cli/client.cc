#include "cli/client.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "cluster/address.h"
#include "cluster/grpc_transport.h"

namespace caravan {

void ClientFlags::AddTo(CLI::App& command) {
  command.add_option("--coordinator", coordinator, "HOST:PORT of the coordinator")
      ->capture_default_str();
  command.add_option("--connect-timeout", connect_timeout_s, "Give up reaching it after SECONDS")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const ClientFlags& flags) {
  CARAVAN_RETURN_IF_ERROR(Annotate(CheckAddress(flags.coordinator), "--coordinator"));
  std::shared_ptr<grpc::Channel> channel = MakeGrpcChannel(flags.coordinator);
  const absl::Time deadline = absl::Now() + absl::Seconds(flags.connect_timeout_s);
  if (!channel->WaitForConnected(absl::ToChronoTime(deadline))) {
    return absl::UnavailableError(absl::StrCat("no coordinator answers at ", flags.coordinator,
                                               " within ", flags.connect_timeout_s, " s"));
  }
  return channel;
}

}  // namespace caravan
