#ifndef CARAVAN_CLUSTER_CERTIFICATE_FILES_H_
#define CARAVAN_CLUSTER_CERTIFICATE_FILES_H_

// Where certificates and keys lie. A directory given by --certs has
//
//   ca.pem         the authorities that this process trusts: one, or more while they are exchanged
//   identity.pem   its own key and certificate, in one file, so that both are replaced at once
//   ca.key         the authority's key: only where certificates are made
//   tokens/        join tokens that were handed out (coordinator/join_tokens.h)
//
// Functions are thread-safe.

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cluster/certificate.h"

namespace caravan {

std::string AuthorityPath(const std::string& directory);     // ca.pem
std::string AuthorityKeyPath(const std::string& directory);  // ca.key
std::string IdentityPath(const std::string& directory);      // identity.pem

/// Makes the directory, for its owner alone from the beginning, unless it is there; with its
/// parents, which are as usual.
/// Errors: InvalidArgument - it cannot be made.
absl::Status MakePrivateDirectory(const std::string& directory);

/// Writes a file that was not there, for its owner alone.
/// Errors: AlreadyExists - it is there, and is left as it is; InvalidArgument - it cannot be made;
///         DataLoss - the disk failed. Each names the path.
absl::Status WritePrivateFile(const std::string& path, absl::string_view text);

/// The same over what was there, in one step: a reader sees the one or the other.
absl::Status ReplacePrivateFile(const std::string& path, absl::string_view text);

/// Reads a file with a key, whose owner alone may read it; one of root's his group too.
/// Errors: PermissionDenied - others may read it, or this process may not; as ReadFile.
absl::StatusOr<std::string> ReadPrivateFile(const std::string& path);

/// ca.pem of a --certs directory. Errors: as ReadFile.
absl::StatusOr<std::string> ReadAuthorities(const std::string& directory);

/// identity.pem, checked as CheckIdentity. Errors: as ReadPrivateFile and CheckIdentity; each names
/// the path.
absl::StatusOr<std::string> ReadIdentity(const std::string& directory, absl::Time now);

/// The authority that signs: ca.key with its certificate of those in ca.pem.
/// Errors: NotFound - it is not here; as ReadPrivateFile and CertificateOfKey. Each names the path.
absl::StatusOr<KeyAndCertificate> ReadAuthority(const std::string& directory);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_CERTIFICATE_FILES_H_
