#include "coordinator/enrolment_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "cluster/certificate.h"
#include "cluster/certificate_files.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

// A request for a key over P-256 has some 400 bytes.
constexpr size_t kMaxRequestBytes = 16 << 10;

/// Errors: FailedPrecondition - it is not here; as ReadAuthority.
absl::StatusOr<KeyAndCertificate> ReadSigner(const std::string& directory) {
  if (FileExists(AuthorityKeyPath(directory))) return ReadAuthority(directory);
  return absl::FailedPreconditionError(
      "it hands out no certificates: its --certs directory has no ca.key");
}

}  // namespace

absl::StatusOr<std::unique_ptr<EnrolmentService>> EnrolmentService::Open(
    const std::string& directory) {
  if (FileExists(AuthorityKeyPath(directory))) {
    CARAVAN_RETURN_IF_ERROR(ReadAuthority(directory).status());
  }
  return std::unique_ptr<EnrolmentService>(new EnrolmentService(directory));
}

bool EnrolmentService::KnowsToken(const std::string& id) const {
  return tokens_.Knows(id, absl::Now());
}

grpc::Status EnrolmentService::GetAuthority(grpc::ServerContext* /*context*/,
                                            const v1::GetAuthorityRequest* /*request*/,
                                            v1::GetAuthorityResponse* response) {
  const absl::Status signs = ReadSigner(directory_).status();
  if (!signs.ok()) return ToGrpcStatus(signs);
  // All of them: whoever joins while they are exchanged is to trust both.
  absl::StatusOr<std::string> authorities = ReadAuthorities(directory_);
  if (!authorities.ok()) return ToGrpcStatus(authorities.status());
  response->set_ca_pem(*std::move(authorities));
  return grpc::Status::OK;
}

grpc::Status EnrolmentService::Enrol(grpc::ServerContext* context, const v1::EnrolRequest* request,
                                     v1::EnrolResponse* response) {
  const auto enrol = [&]() -> absl::Status {
    if (request->signing_request_pem().size() > kMaxRequestBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a request for a certificate has at most ", kMaxRequestBytes, " bytes"));
    }
    CARAVAN_ASSIGN_OR_RETURN(const KeyAndCertificate authority, ReadSigner(directory_));
    const absl::Time now = absl::Now();
    const Validity lifetime = {now, kDefaultCertificateLifetime};
    // What cannot be signed must not use the token up.
    CARAVAN_RETURN_IF_ERROR(
        SignRequest(authority, request->signing_request_pem(), {Role::kClient, "nobody"}, lifetime)
            .status());
    CARAVAN_ASSIGN_OR_RETURN(const Identity identity,
                             tokens_.Redeem(request->token_id(), request->token_secret(), now));
    CARAVAN_ASSIGN_OR_RETURN(
        std::string certificate,
        SignRequest(authority, request->signing_request_pem(), identity, lifetime));
    response->set_certificate_pem(std::move(certificate));
    response->set_name(ToString(identity));
    return absl::OkStatus();
  };
  const absl::Status status = enrol();
  if (status.ok()) {
    LogInfo("enrolled", {{"identity", response->name()}, {"peer", context->peer()}});
  } else {
    LogWarning("enrolment_refused", {{"peer", context->peer()}, {"why", status.message()}});
  }
  return ToGrpcStatus(status);
}

}  // namespace caravan
