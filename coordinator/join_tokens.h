#ifndef CARAVAN_COORDINATOR_JOIN_TOKENS_H_
#define CARAVAN_COORDINATOR_JOIN_TOKENS_H_

// Join tokens: who holds one may have one certificate, for the name that was written down when the
// token was made, until it expires. A token is a line of text,
//
//   caravan1.ID.SECRET.FINGERPRINT      (16, 32 and 64 hexadecimal digits)
//
// where FINGERPRINT is that of the authority's certificate: by it a new box knows the coordinator.
// On disk is tokens/ID in the directory of certificates, with the SHA-256 of the secret:
//
//   SHA256 ROLE/NAME EXPIRES            (64 hexadecimal digits; seconds since 1970)

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cluster/identity.h"

namespace caravan {

struct JoinToken {
  std::string id;
  std::string secret;
  std::string fingerprint;
};

/// Errors: InvalidArgument - it is none; does not repeat it.
absl::StatusOr<JoinToken> ParseJoinToken(absl::string_view text);

/// Thread-safe, also against other processes with the same directory.
class JoinTokens {
 public:
  /// `directory`: of certificates.
  explicit JoinTokens(std::string directory);

  /// Makes a token for `identity` and returns its text, which is kept nowhere. Tokens that have
  /// expired are removed.
  /// Errors: InvalidArgument - the name; as ReadAuthority - certificates are not made here; as
  ///         WritePrivateFile.
  absl::StatusOr<std::string> Make(const Identity& identity, absl::Time expires, absl::Time now);

  /// Whether there is one with this id that has not expired.
  bool Knows(const std::string& id, absl::Time now) const;

  /// Takes the token away, and returns whom it was for.
  /// Errors: PermissionDenied - unknown, used, expired, or not its secret (it is not said which).
  absl::StatusOr<Identity> Redeem(const std::string& id, const std::string& secret, absl::Time now);

 private:
  void RemoveExpired(absl::Time now) const;

  const std::string authority_directory_;
  const std::string directory_;  // of the tokens
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_JOIN_TOKENS_H_
