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
//   KvBlocks                                 x
//   ModelFiles, PackFiles                    x
//   Pipeline.Flow                 x          x
//   Probe                         x          x       x
//   Enrolment                     x          x       x       with a join token that is good
//
// Whose steps a worker takes within a plan is the plan's matter (cluster/sender_gate.h).

#include <functional>
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

/// Metadata of calls to Enrolment: the id of the caller's join token.
inline constexpr char kTokenIdKey[] = "caravan-token-id";

/// Whether there is such a token, by its id. Called by any thread.
using KnowsToken = std::function<bool(const std::string& id)>;

/// CheckCall for every call of a server; refusals are logged. Without a certificate a caller gets
/// to Enrolment, and to having a message read, only with a token that `knows_token` (null: none).
std::shared_ptr<grpc::AuthMetadataProcessor> MakeCallGuard(KnowsToken knows_token);

/// Who the other end of a connection is, once TLS has checked that; nobody where it has not.
std::optional<Identity> IdentityOfPeer(const grpc::AuthContext* context);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_CALL_GUARD_H_
