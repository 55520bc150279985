#ifndef CARAVAN_CLI_ENROLMENT_CLIENT_H_
#define CARAVAN_CLI_ENROLMENT_CLIENT_H_

// How a new box gets its certificate from a coordinator.

#include <string>

#include "absl/status/statusor.h"
#include "cluster/certificate.h"
#include "coordinator/join_tokens.h"

namespace caravan {

struct Enrolled {
  KeyAndCertificate identity;
  std::string authorities_pem;  // ca.pem
  std::string name;             // whose certificate it is: "worker/box-c"
};

/// Makes a key and has the coordinator at HOST:PORT sign for it. The secret is sent to nobody but a
/// coordinator of the authority that the token names.
/// Errors: Unauthenticated - whoever answers is none; PermissionDenied - it does not take the
/// token;
///         FailedPrecondition - it has no certificates, or hands none out; Unavailable - nobody
///         answers.
absl::StatusOr<Enrolled> Enrol(const std::string& address, const JoinToken& token);

}  // namespace caravan

#endif  // CARAVAN_CLI_ENROLMENT_CLIENT_H_
