#ifndef CARAVAN_CLUSTER_IDENTITY_H_
#define CARAVAN_CLUSTER_IDENTITY_H_

// Who a certificate says its holder is. The certificate carries it as a URI among its alternative
// names: caravan://cluster/ROLE/NAME.

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// What the holder may do; cluster/call_guard.h has the rules.
enum class Role {
  kCoordinator,
  kWorker,
  kClient,
};

/// "coordinator", "worker" or "client".
absl::string_view RoleName(Role role);

struct Identity {
  Role role = Role::kClient;
  std::string name;  // of a box or a person; several processes may share one

  bool operator==(const Identity&) const = default;
};

/// Errors: InvalidArgument - a name must have 1 to 63 letters, digits, '.', '-' and '_', and begin
///         with a letter or a digit.
absl::Status CheckIdentityName(absl::string_view name);

/// ROLE/NAME, as "worker/box-a": for messages, and how identities go over the wire.
std::string ToString(const Identity& identity);

/// The opposite. Errors: InvalidArgument - it is none.
absl::StatusOr<Identity> ParseIdentity(absl::string_view text);

std::string ToUri(const Identity& identity);

/// Errors: InvalidArgument - it is no identity of Caravan's.
absl::StatusOr<Identity> ParseIdentityUri(absl::string_view uri);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_IDENTITY_H_
