#ifndef CARAVAN_COORDINATOR_ENROLMENT_SERVICE_H_
#define CARAVAN_COORDINATOR_ENROLMENT_SERVICE_H_

// Hands out certificates for join tokens.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "caravan/v1/enrolment.grpc.pb.h"
#include "coordinator/join_tokens.h"

namespace caravan {

/// How long a certificate is good that nobody gave another time.
inline constexpr absl::Duration kDefaultCertificateLifetime = absl::Hours(24 * 365);

/// Thread-safe. Reads the authority anew for each call: it may have been exchanged.
class EnrolmentService final : public v1::Enrolment::Service {
 public:
  /// Where the directory of certificates lacks the authority's key, calls are FailedPrecondition.
  /// Errors: PermissionDenied - others may read that key; as ReadAuthority.
  static absl::StatusOr<std::unique_ptr<EnrolmentService>> Open(const std::string& directory);

  bool KnowsToken(const std::string& id) const;

  grpc::Status GetAuthority(grpc::ServerContext* context, const v1::GetAuthorityRequest* request,
                            v1::GetAuthorityResponse* response) override;
  grpc::Status Enrol(grpc::ServerContext* context, const v1::EnrolRequest* request,
                     v1::EnrolResponse* response) override;

 private:
  explicit EnrolmentService(std::string directory)
      : directory_(std::move(directory)), tokens_(directory_) {}

  const std::string directory_;
  JoinTokens tokens_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_ENROLMENT_SERVICE_H_
