#include "cluster/connection_doubt.h"

#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/free_with.h"
#include "base/status_macros.h"
#include "cluster/certificate.h"
#include "cluster/certificate_files.h"

namespace caravan {
namespace {

// "h2", its length first, as TLS wants it.
constexpr unsigned char kHttp2[] = {2, 'h', '2'};

using Context = std::unique_ptr<SSL_CTX, FreeWith<SSL_CTX_free>>;
using Connection = std::unique_ptr<SSL, FreeWith<SSL_free>>;
using Addresses = std::unique_ptr<addrinfo, FreeWith<freeaddrinfo>>;
using Bio = std::unique_ptr<BIO, FreeWith<BIO_free_all>>;

/// A connected socket; closes itself.
class Socket {
 public:
  Socket(const std::string& address, absl::Duration timeout) {
    const size_t colon = address.rfind(':');
    std::string host = address.substr(0, colon);
    if (absl::StartsWith(host, "[")) host = host.substr(1, host.size() - 2);
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (::getaddrinfo(host.c_str(), address.substr(colon + 1).c_str(), &hints, &found) != 0) return;
    const Addresses addresses(found);
    fd_ = ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const timeval limit = absl::ToTimeval(timeout);
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    connected_ = ::connect(fd_, found->ai_addr, found->ai_addrlen) == 0;
  }
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  bool connected() const { return connected_; }
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
  bool connected_ = false;
};

/// What the last failed call of this thread's left behind.
std::string LastReason() {
  const unsigned long error = ERR_peek_last_error();
  const char* const reason = error == 0 ? nullptr : ERR_reason_error_string(error);
  return reason == nullptr ? "it hung up" : reason;
}

absl::Status ServerIsPlain() {
  return absl::FailedPreconditionError(
      "it answers without TLS: it was started without --certs, and this end has certificates");
}

absl::Status Refuses(absl::string_view reason) {
  return absl::UnauthenticatedError(
      absl::StrCat("it does not take this end's certificate: ", reason));
}

absl::Status CheckServerCertificate(SSL* connection) {
  X509* const certificate = SSL_get0_peer_certificate(connection);
  if (certificate == nullptr) return absl::OkStatus();
  const Bio bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_X509(bio.get(), certificate);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  CARAVAN_ASSIGN_OR_RETURN(const CertificateFacts facts,
                           ReadCertificate(std::string(data, static_cast<size_t>(size))));
  std::vector<absl::string_view> uris;
  const std::string uri = facts.identity.ok() ? ToUri(*facts.identity) : "";
  uris.push_back(uri);
  return CheckPeer(uris, std::nullopt);
}

}  // namespace

absl::Status ExplainNoConnection(const std::string& address, const TransportSecurity& security,
                                 absl::Duration timeout) {
  const Socket socket(address, timeout);
  if (!socket.connected()) return absl::OkStatus();
  const Context context(SSL_CTX_new(TLS_client_method()));
  if (security.tls != nullptr) {
    const std::string& directory = security.tls->directory();
    // They were right when the process started; where they are not now, that is the reason.
    const absl::StatusOr<std::string> own = ReadIdentity(directory, absl::Now());
    if (!own.ok()) return absl::UnauthenticatedError(own.status().message());
    SSL_CTX_load_verify_locations(context.get(), AuthorityPath(directory).c_str(), nullptr);
    SSL_CTX_use_certificate_chain_file(context.get(), IdentityPath(directory).c_str());
    SSL_CTX_use_PrivateKey_file(context.get(), IdentityPath(directory).c_str(), SSL_FILETYPE_PEM);
    SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  }
  const Connection connection(SSL_new(context.get()));
  SSL_set_alpn_protos(connection.get(), kHttp2, sizeof(kHttp2));
  SSL_set_fd(connection.get(), socket.fd());
  ERR_clear_error();
  if (SSL_connect(connection.get()) != 1) {
    if (security.tls == nullptr) return absl::OkStatus();  // plain, as this end is
    const long verified = SSL_get_verify_result(connection.get());
    if (verified != X509_V_OK) {
      return absl::UnauthenticatedError(
          absl::StrCat("its certificate is not to be trusted by this end's ca.pem: ",
                       X509_verify_cert_error_string(verified)));
    }
    const int reason = ERR_GET_REASON(ERR_peek_last_error());
    if (reason == SSL_R_WRONG_VERSION_NUMBER || reason == SSL_R_HTTP_REQUEST)
      return ServerIsPlain();
    // Who says so by TLS's own words is there to stay; silence may be a start or an end.
    if (reason > SSL_AD_REASON_OFFSET) return Refuses(LastReason());
    return absl::OkStatus();
  }
  if (security.tls == nullptr) {
    return absl::FailedPreconditionError(
        "it has certificates, and this end none: give --certs DIRECTORY");
  }
  CARAVAN_RETURN_IF_ERROR(CheckServerCertificate(connection.get()));
  // What it thinks of this end's certificate shows, with TLS 1.3, in what follows: its first bytes,
  // or an alert or an end in their place.
  char byte = 0;
  const int read = SSL_read(connection.get(), &byte, 1);
  if (read == 1 || SSL_get_error(connection.get(), read) == SSL_ERROR_WANT_READ) {
    return absl::OkStatus();
  }
  const int reason = ERR_GET_REASON(ERR_peek_last_error());
  return Refuses(reason > SSL_AD_REASON_OFFSET
                     ? LastReason()
                     : "it hung up on it (another authority's? a clock that is wrong?)");
}

}  // namespace caravan
