#ifndef CARAVAN_CLI_SECURITY_FLAGS_H_
#define CARAVAN_CLI_SECURITY_FLAGS_H_

// What every command that speaks to the cluster can be told about certificates.

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "cluster/transport_security.h"

namespace caravan {

/// The option --certs, and for what serves --insecure.
struct SecurityFlags {
  std::string certs;  // directory; empty: no certificates
  bool insecure = false;
  bool serves = false;  // for long: a CertificateWatcher says what Load would

  /// Keeps a reference to this, as AddToServer.
  void AddTo(CLI::App& command);
  void AddToServer(CLI::App& command);

  /// Warns of --insecure, and, unless the command serves, of a certificate that soon expires.
  /// Errors: as ReadIdentity; InvalidArgument - both options.
  absl::StatusOr<TransportSecurity> Load() const;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_SECURITY_FLAGS_H_
