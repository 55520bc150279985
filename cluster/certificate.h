#ifndef CARAVAN_CLUSTER_CERTIFICATE_H_
#define CARAVAN_CLUSTER_CERTIFICATE_H_

// A cluster's certificates and keys, as PEM text. Keys are ECDSA over P-256. One authority signs
// for everybody; an identity's certificate names who holds it (cluster/identity.h) and nothing
// else: no host, so that boxes may move. Knows no files: cluster/certificate_files.h does.
// Functions are thread-safe.

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/identity.h"

namespace caravan {

struct KeyAndCertificate {
  std::string key_pem;
  std::string certificate_pem;
};

/// From a minute before `now` on, as clocks differ.
struct Validity {
  absl::Time now;
  absl::Duration lifetime;
};

/// A new authority: a key, and the certificate with which it vouches for itself.
/// Errors: Internal - OpenSSL failed.
absl::StatusOr<KeyAndCertificate> MakeAuthority(const Validity& validity);

/// Errors: Internal - OpenSSL failed.
absl::StatusOr<std::string> MakeKey();

/// PKCS #10: asks for a certificate for the key, which it does not hold. Says nothing of who asks.
/// Errors: InvalidArgument - no key.
absl::StatusOr<std::string> MakeSigningRequest(const std::string& key_pem);

/// A certificate of the authority for `identity` and the key of the request. A client's is good for
/// the calling end of a connection only. It ends with the authority's, where that is sooner: nobody
/// would believe it for longer.
/// Errors: InvalidArgument - the name, no request, one that is not signed by its key, or another
///         kind of key; FailedPrecondition - the authority's key and certificate do not belong
///         together, or it has expired or is not valid yet.
absl::StatusOr<std::string> SignRequest(const KeyAndCertificate& authority,
                                        const std::string& request_pem, const Identity& identity,
                                        const Validity& validity);

/// All three in one: a new key with its certificate.
absl::StatusOr<KeyAndCertificate> IssueIdentity(const KeyAndCertificate& authority,
                                                const Identity& identity, const Validity& validity);

/// What a certificate says; of several in the text, the first.
struct CertificateFacts {
  absl::StatusOr<Identity> identity;  // an error where it names none
  absl::Time not_before;
  absl::Time not_after;
  std::string fingerprint;  // SHA-256 of its DER form, 64 hexadecimal digits
};

/// Errors: InvalidArgument - no certificate.
absl::StatusOr<CertificateFacts> ReadCertificate(const std::string& pem);

/// Each certificate in the text alone, in order; what else is there is left out.
std::vector<std::string> SplitCertificates(const std::string& pem);

/// Of the certificates in the text the first that is this key's.
/// Errors: InvalidArgument - no key; FailedPrecondition - it belongs to none of them.
absl::StatusOr<std::string> CertificateOfKey(const std::string& certificates_pem,
                                             const std::string& key_pem);

/// Whether `identity_pem`, a key with its certificate in any order, can be shown in a cluster whose
/// authorities are those of `authorities_pem` (one, or more while they are exchanged).
/// Errors: InvalidArgument - it cannot be read, the key is another's, or it names nobody;
///         FailedPrecondition - expired or not valid yet, itself or its authority, which is said;
///         or of another authority.
absl::Status CheckIdentity(const std::string& authorities_pem, const std::string& identity_pem,
                           absl::Time now);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_CERTIFICATE_H_
