#ifndef CARAVAN_CLI_CLIENT_H_
#define CARAVAN_CLI_CLIENT_H_

// How the commands that talk to a coordinator reach it.

#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "grpcpp/channel.h"

namespace caravan {

/// The options --coordinator and --connect-timeout.
struct ClientFlags {
  std::string coordinator = "127.0.0.1:7070";
  double connect_timeout_s = 10;

  void AddTo(CLI::App& command);
};

/// Errors: InvalidArgument - no HOST:PORT; Unavailable - nobody answers at flags.coordinator within
/// the time.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const ClientFlags& flags);

}  // namespace caravan

#endif  // CARAVAN_CLI_CLIENT_H_
