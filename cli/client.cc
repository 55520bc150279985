#include "cli/client.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "cluster/address.h"
#include "cluster/grpc_transport.h"

namespace caravan {
namespace {

absl::StatusOr<TransportSecurity> LoadSecurity(const ClientFlags& flags) {
  absl::StatusOr<TransportSecurity> security = flags.security.Load();
  if (!security.ok()) return Annotate(security.status(), "--certs");
  return security;
}

absl::Status Wait(grpc::Channel& channel, const ClientFlags& flags,
                  const TransportSecurity& security, const std::stop_token& stop) {
  const absl::Status connected = WaitForConnection(channel, flags.coordinator, security,
                                                   absl::Seconds(flags.connect_timeout_s), stop);
  if (!absl::IsDeadlineExceeded(connected)) return connected;
  return absl::UnavailableError(absl::StrCat("no coordinator answers at ", flags.coordinator,
                                             " within ", flags.connect_timeout_s, " s"));
}

}  // namespace

void ClientFlags::AddTo(CLI::App& command) {
  command.add_option("--coordinator", coordinator, "HOST:PORT of the coordinator")
      ->capture_default_str();
  command.add_option("--connect-timeout", connect_timeout_s, "Give up reaching it after SECONDS")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  security.AddTo(command);
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const ClientFlags& flags,
                                                       std::stop_token stop) {
  CARAVAN_RETURN_IF_ERROR(Annotate(CheckAddress(flags.coordinator), "--coordinator"));
  CARAVAN_ASSIGN_OR_RETURN(const TransportSecurity security, LoadSecurity(flags));
  ChannelOptions options;
  options.security = security;
  std::shared_ptr<grpc::Channel> channel = MakeGrpcChannel(flags.coordinator, options);
  CARAVAN_RETURN_IF_ERROR(Wait(*channel, flags, security, stop));
  return channel;
}

absl::Status WaitUntilConnected(grpc::Channel& channel, const ClientFlags& flags,
                                std::stop_token stop) {
  if (channel.GetState(/*try_to_connect=*/true) == GRPC_CHANNEL_READY) return absl::OkStatus();
  CARAVAN_ASSIGN_OR_RETURN(const TransportSecurity security, LoadSecurity(flags));
  return Wait(channel, flags, security, stop);
}

absl::Status NameCoordinator(const absl::Status& status, const ClientFlags& flags) {
  if (!absl::IsUnavailable(status)) return status;
  return Annotate(status, absl::StrCat("coordinator ", flags.coordinator));
}

void LimitCall(grpc::ClientContext& context) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + kShortCallTimeout));
}

}  // namespace caravan
