#include "cluster/transport_security.h"

#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cluster/address.h"
#include "cluster/call_guard.h"
#include "cluster/certificate_files.h"
#include "cluster/grpc_status.h"
#include "grpcpp/security/tls_certificate_verifier.h"
#include "grpcpp/security/tls_credentials_options.h"

namespace caravan {
namespace {

using grpc::experimental::TlsChannelCredentialsOptions;

// Between two looks at the files of certificates.
constexpr unsigned int kRefreshSeconds = 1;

/// Runs when a server's certificate has been found to be of the authority.
class PeerVerifier : public grpc::experimental::ExternalCertificateVerifier {
 public:
  explicit PeerVerifier(std::optional<Identity> peer) : peer_(std::move(peer)) {}

  bool Verify(grpc::experimental::TlsCustomVerificationCheckRequest* request,
              std::function<void(grpc::Status)> /*callback*/, grpc::Status* sync_status) override {
    std::vector<absl::string_view> uris;
    for (const grpc::string_ref& uri : request->uri_names())
      uris.emplace_back(uri.data(), uri.size());
    *sync_status = ToGrpcStatus(CheckPeer(uris, peer_));
    return true;
  }

  void Cancel(grpc::experimental::TlsCustomVerificationCheckRequest* /*request*/) override {}

 private:
  const std::optional<Identity> peer_;
};

void SetVerifier(TlsChannelCredentialsOptions& options, std::optional<Identity> peer) {
  // Certificates name a member of the cluster and no host.
  options.set_check_call_host(false);
  options.set_certificate_verifier(
      grpc::experimental::ExternalCertificateVerifier::Create<PeerVerifier>(std::move(peer)));
}

}  // namespace

ClusterTls::ClusterTls(std::string directory, Identity identity)
    : directory_(std::move(directory)),
      identity_(std::move(identity)),
      files_(std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          IdentityPath(directory_), IdentityPath(directory_), AuthorityPath(directory_),
          kRefreshSeconds)) {}

absl::StatusOr<std::shared_ptr<const ClusterTls>> ClusterTls::Load(const std::string& directory,
                                                                   absl::Time now) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string pem, ReadIdentity(directory, now));
  CARAVAN_ASSIGN_OR_RETURN(const CertificateFacts facts, ReadCertificate(pem));
  CARAVAN_ASSIGN_OR_RETURN(Identity identity, facts.identity);
  return std::shared_ptr<const ClusterTls>(new ClusterTls(directory, std::move(identity)));
}

std::shared_ptr<grpc::ChannelCredentials> ClusterTls::ForChannel(
    const std::optional<Identity>& peer, bool any_peer) const {
  TlsChannelCredentialsOptions options;
  options.set_certificate_provider(files_);
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  if (any_peer) {
    // That the certificate is of the authority is checked all the same.
    options.set_check_call_host(false);
    options.set_certificate_verifier(
        std::make_shared<grpc::experimental::NoOpCertificateVerifier>());
  } else {
    SetVerifier(options, peer);
  }
  return grpc::experimental::TlsCredentials(options);
}

std::shared_ptr<grpc::ServerCredentials> ClusterTls::ForServer(KnowsToken knows_token) const {
  grpc::experimental::TlsServerCredentialsOptions options(files_);
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_cert_request_type(GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY);
  std::shared_ptr<grpc::ServerCredentials> credentials =
      grpc::experimental::TlsServerCredentials(options);
  credentials->SetAuthMetadataProcessor(MakeCallGuard(std::move(knows_token)));
  return credentials;
}

std::shared_ptr<grpc::ChannelCredentials> CredentialsWithoutIdentity(
    const std::optional<std::string>& authority_pem) {
  TlsChannelCredentialsOptions options;
  if (authority_pem.has_value()) {
    options.set_certificate_provider(
        std::make_shared<grpc::experimental::StaticDataCertificateProvider>(*authority_pem));
    options.watch_root_certs();
    SetVerifier(options, std::nullopt);
  } else {
    options.set_verify_server_certs(false);
    options.set_check_call_host(false);
    options.set_certificate_verifier(
        std::make_shared<grpc::experimental::NoOpCertificateVerifier>());
  }
  return grpc::experimental::TlsCredentials(options);
}

absl::Status CheckPeer(const std::vector<absl::string_view>& uris,
                       const std::optional<Identity>& peer) {
  absl::StatusOr<Identity> found = absl::InvalidArgumentError("");
  for (const absl::string_view uri : uris) {
    found = ParseIdentityUri(uri);
    if (found.ok()) break;
  }
  if (found.ok() && (peer.has_value() ? *found == *peer : found->role == Role::kCoordinator)) {
    return absl::OkStatus();
  }
  return absl::UnauthenticatedError(
      absl::StrCat("whoever answers has a certificate of ",
                   found.ok() ? ToString(*found) : std::string("nobody in a cluster"), ", not of ",
                   peer.has_value() ? ToString(*peer) : std::string("a coordinator")));
}

absl::Status CheckListen(absl::string_view address, const TransportSecurity& security) {
  CARAVAN_RETURN_IF_ERROR(CheckAddress(address, /*min_port=*/0));
  if (security.tls != nullptr || security.insecure || IsLoopbackName(address)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "without certificates only this machine is served, and ", address,
      " is beyond its loopback: give --certs DIRECTORY (caravan certs makes one), or --insecure "
      "where everybody who reaches it may do everything"));
}

}  // namespace caravan
