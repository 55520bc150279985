#ifndef CARAVAN_CLI_CLIENT_H_
#define CARAVAN_CLI_CLIENT_H_

// How the commands that talk to a coordinator reach it.

#include <memory>
#include <stop_token>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/security_flags.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"

namespace caravan {

/// How long a call may take that does not wait for anything to happen.
inline constexpr absl::Duration kShortCallTimeout = absl::Seconds(10);

/// The options --coordinator, --connect-timeout and --certs.
struct ClientFlags {
  std::string coordinator = "127.0.0.1:7070";
  double connect_timeout_s = 10;
  SecurityFlags security;

  void AddTo(CLI::App& command);
};

/// Errors: InvalidArgument - no HOST:PORT; Unavailable - nobody answers at flags.coordinator within
/// the time; as SecurityFlags::Load and ExplainNoConnection; Cancelled - `stop` came before.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const ClientFlags& flags,
                                                       std::stop_token stop = {});

/// Waits until the channel that Connect gave is connected, perhaps again. Errors: as Connect.
absl::Status WaitUntilConnected(grpc::Channel& channel, const ClientFlags& flags,
                                std::stop_token stop = {});

/// An Unavailable says of which coordinator; another status stays as it is.
absl::Status NameCoordinator(const absl::Status& status, const ClientFlags& flags);

/// Sets the call's deadline to kShortCallTimeout from now.
void LimitCall(grpc::ClientContext& context);

}  // namespace caravan

#endif  // CARAVAN_CLI_CLIENT_H_
