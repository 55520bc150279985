#ifndef CARAVAN_CLUSTER_TRANSPORT_SECURITY_H_
#define CARAVAN_CLUSTER_TRANSPORT_SECURITY_H_

// How a process of the cluster shows who it is, and knows whom it talks to: TLS with a certificate
// at both ends, or nothing, on this machine's loopback and where the operator insists.

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cluster/call_guard.h"
#include "cluster/identity.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/security/tls_certificate_provider.h"

namespace caravan {

/// A --certs directory in use. Its files are looked at every second: connections that are made
/// after they were replaced use the new ones, those that are open stay. Thread-safe.
class ClusterTls {
 public:
  /// Errors: as ReadIdentity.
  static absl::StatusOr<std::shared_ptr<const ClusterTls>> Load(const std::string& directory,
                                                                absl::Time now);

  const std::string& directory() const { return directory_; }
  /// As of Load.
  const Identity& identity() const { return identity_; }

  /// For a channel to `peer`, exactly, or where none is given to any coordinator: nothing is sent
  /// to anybody else, whose handshake fails. `any_peer`: to anybody of the cluster who may serve.
  std::shared_ptr<grpc::ChannelCredentials> ForChannel(const std::optional<Identity>& peer,
                                                       bool any_peer = false) const;

  /// A caller's certificate is checked if it shows one; cluster/call_guard.h then decides about
  /// each call, also of callers that show none.
  std::shared_ptr<grpc::ServerCredentials> ForServer(KnowsToken knows_token) const;

 private:
  ClusterTls(std::string directory, Identity identity);

  const std::string directory_;
  const Identity identity_;
  const std::shared_ptr<grpc::experimental::CertificateProviderInterface> files_;
};

/// For a first contact: encrypted, but whoever answers is believed, who learns nothing of the
/// caller. With `authority_pem`, a coordinator with a certificate of that authority only.
std::shared_ptr<grpc::ChannelCredentials> CredentialsWithoutIdentity(
    const std::optional<std::string>& authority_pem);

/// Whether a server with the identity that `uris` hold, alternative names of its certificate, is
/// `peer`; or a coordinator, where no peer is given.
/// Errors: Unauthenticated - it is another; says who.
absl::Status CheckPeer(const std::vector<absl::string_view>& uris,
                       const std::optional<Identity>& peer);

struct TransportSecurity {
  std::shared_ptr<const ClusterTls> tls;  // null: connections are plain
  bool insecure = false;                  // plain ones are served beyond loopback too
  KnowsToken knows_token = nullptr;       // of a server that enrols: as MakeCallGuard
};

/// Whether a server may listen at HOST:PORT.
/// Errors: InvalidArgument - not HOST:PORT, or it is beyond this machine's loopback, and there are
///         neither certificates nor `insecure`.
absl::Status CheckListen(absl::string_view address, const TransportSecurity& security);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_TRANSPORT_SECURITY_H_
