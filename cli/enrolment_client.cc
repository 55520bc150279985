#include "cli/enrolment_client.h"

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "caravan/v1/enrolment.grpc.pb.h"
#include "cli/client.h"
#include "cluster/call_guard.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"

namespace caravan {
namespace {

// Certificates have a few hundred bytes.
constexpr int kMaxAnswerBytes = 1 << 20;

/// Whoever answers, where no authority is given.
std::unique_ptr<v1::Enrolment::Stub> Dial(const std::string& address,
                                          const std::optional<std::string>& authority_pem) {
  return v1::Enrolment::NewStub(
      MakeGrpcChannel(address, CredentialsWithoutIdentity(authority_pem), kMaxAnswerBytes));
}

absl::StatusOr<std::string> AskForAuthority(v1::Enrolment::Stub& stub, const JoinToken& token) {
  grpc::ClientContext context;
  context.AddMetadata(kTokenIdKey, token.id);
  LimitCall(context);
  v1::GetAuthorityResponse response;
  CARAVAN_RETURN_IF_ERROR(
      FromGrpcStatus(stub.GetAuthority(&context, v1::GetAuthorityRequest(), &response)));
  return response.ca_pem();
}

/// The one whose fingerprint is known, and nothing that was sent beside it.
absl::StatusOr<std::string> FindAuthority(const std::string& shown,
                                          const std::string& fingerprint) {
  for (std::string& certificate : SplitCertificates(shown)) {
    CARAVAN_ASSIGN_OR_RETURN(const CertificateFacts facts, ReadCertificate(certificate));
    if (facts.fingerprint == fingerprint) return std::move(certificate);
  }
  return absl::UnauthenticatedError(
      "its authority is not the one that the token names: it is another cluster's, or somebody "
      "stands between");
}

absl::StatusOr<Enrolled> TryEnrol(const std::string& address, const JoinToken& token) {
  const absl::StatusOr<std::string> shown = AskForAuthority(*Dial(address, std::nullopt), token);
  CARAVAN_RETURN_IF_ERROR(shown.status());
  CARAVAN_ASSIGN_OR_RETURN(const std::string authority, FindAuthority(*shown, token.fingerprint));
  const std::unique_ptr<v1::Enrolment::Stub> stub = Dial(address, authority);
  Enrolled enrolled;
  CARAVAN_ASSIGN_OR_RETURN(enrolled.authorities_pem, AskForAuthority(*stub, token));
  CARAVAN_ASSIGN_OR_RETURN(enrolled.identity.key_pem, MakeKey());
  CARAVAN_ASSIGN_OR_RETURN(const std::string request,
                           MakeSigningRequest(enrolled.identity.key_pem));
  v1::EnrolRequest enrol;
  enrol.set_token_id(token.id);
  enrol.set_token_secret(token.secret);
  enrol.set_signing_request_pem(request);
  grpc::ClientContext context;
  context.AddMetadata(kTokenIdKey, token.id);
  LimitCall(context);
  v1::EnrolResponse response;
  CARAVAN_RETURN_IF_ERROR(FromGrpcStatus(stub->Enrol(&context, enrol, &response)));
  enrolled.identity.certificate_pem = response.certificate_pem();
  enrolled.name = response.name();
  CARAVAN_RETURN_IF_ERROR(
      CheckIdentity(enrolled.authorities_pem,
                    enrolled.identity.key_pem + enrolled.identity.certificate_pem, absl::Now()));
  return enrolled;
}

}  // namespace

absl::StatusOr<Enrolled> Enrol(const std::string& address, const JoinToken& token) {
  absl::StatusOr<Enrolled> enrolled = TryEnrol(address, token);
  if (!enrolled.ok()) return Annotate(enrolled.status(), absl::StrCat("coordinator ", address));
  return enrolled;
}

}  // namespace caravan
