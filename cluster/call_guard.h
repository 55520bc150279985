#ifndef CARAVAN_CLUSTER_CALL_GUARD_H_
#define CARAVAN_CLUSTER_CALL_GUARD_H_

// Who may call what, where connections have certificates. Asked for each call when its headers have
// come, before any of its messages is read.
//
//   call                     coordinator  worker  client  without a certificate
//   Cluster.Attend                           x
//   Cluster.GetStatus             x          x       x
//   Cluster.Drain                 x                  x
//   Jobs, Batches                 x                  x
//   ModelFiles                               x
//   Pipeline.Flow                 x          x
//   Probe                         x          x       x
//   Enrolment                     x          x       x              x
//
// Whose steps a worker takes within a plan is the plan's matter (cluster/sender_gate.h).

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "cluster/identity.h"
#include "grpcpp/security/auth_context.h"
#include "grpcpp/security/auth_metadata_processor.h"

namespace caravan {

/// Whether `caller`, who showed no certificate if there is none, may call `path`, such as
/// "/caravan.v1.Jobs/Submit".
/// Errors: Unauthenticated - only with a certificate; PermissionDenied - not with this one.
absl::Status CheckCall(absl::string_view path, const std::optional<Identity>& caller);

/// CheckCall for every call of a server; refusals are logged.
std::shared_ptr<grpc::AuthMetadataProcessor> MakeCallGuard();

/// Who the other end of a connection is, once TLS has checked that; nobody where it has not.
std::optional<Identity> IdentityOfPeer(const grpc::AuthContext* context);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_CALL_GUARD_H_
