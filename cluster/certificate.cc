#include "cluster/certificate.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <ctime>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/free_with.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

constexpr absl::Duration kClockSkew = absl::Minutes(1);
constexpr int kSerialBytes = 16;

using Bio = std::unique_ptr<BIO, FreeWith<BIO_free_all>>;
using Key = std::unique_ptr<EVP_PKEY, FreeWith<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, FreeWith<X509_free>>;
using Request = std::unique_ptr<X509_REQ, FreeWith<X509_REQ_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, FreeWith<X509_EXTENSION_free>>;
using Store = std::unique_ptr<X509_STORE, FreeWith<X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, FreeWith<X509_STORE_CTX_free>>;
using Names = std::unique_ptr<GENERAL_NAMES, FreeWith<GENERAL_NAMES_free>>;
using Number = std::unique_ptr<BIGNUM, FreeWith<BN_free>>;

absl::Status Expired(absl::string_view who, absl::Time end) {
  return absl::FailedPreconditionError(absl::StrCat(who, " expired at ", absl::FormatTime(end)));
}
absl::Status NotYetValid(absl::string_view who, absl::Time begin) {
  return absl::FailedPreconditionError(absl::StrCat(who, " is valid from ", absl::FormatTime(begin),
                                                    " on only: is the clock right?"));
}

absl::Status Failed(absl::string_view what) {
  return absl::InternalError(absl::StrCat("OpenSSL: ", what, " failed"));
}

Bio Reader(const std::string& text) {
  return Bio(
      BIO_new_mem_buf(text.data(), static_cast<int>(std::min<size_t>(text.size(), INT_MAX))));
}

Bio Writer() { return Bio(BIO_new(BIO_s_mem())); }

std::string Written(const Bio& bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

/// Never asks a terminal for a passphrase: keys have none.
int NoPassphrase(char* /*buffer*/, int /*size*/, int /*writing*/, void* /*data*/) { return -1; }

absl::StatusOr<Key> ReadKey(const std::string& pem) {
  Key key(PEM_read_bio_PrivateKey(Reader(pem).get(), nullptr, NoPassphrase, nullptr));
  if (key == nullptr) return absl::InvalidArgumentError("it holds no private key in PEM");
  return key;
}

absl::StatusOr<Certificate> ReadX509(const std::string& pem) {
  Certificate certificate(PEM_read_bio_X509(Reader(pem).get(), nullptr, NoPassphrase, nullptr));
  if (certificate == nullptr) return absl::InvalidArgumentError("it holds no certificate in PEM");
  return certificate;
}

std::string ToPem(EVP_PKEY* key) {
  const Bio bio = Writer();
  PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr);
  return Written(bio);
}

std::string ToPem(X509* certificate) {
  const Bio bio = Writer();
  PEM_write_bio_X509(bio.get(), certificate);
  return Written(bio);
}

bool AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  return extension != nullptr && X509_add_ext(certificate, extension.get(), -1) == 1;
}

bool SetName(X509* certificate, const std::string& name) {
  X509_NAME* const subject = X509_get_subject_name(certificate);
  return X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8,
                                    reinterpret_cast<const unsigned char*>(name.data()),
                                    static_cast<int>(name.size()), -1, 0) == 1;
}

bool SetTimes(X509* certificate, absl::Time now, absl::Time end) {
  return ASN1_TIME_set(X509_getm_notBefore(certificate), absl::ToTimeT(now - kClockSkew)) !=
             nullptr &&
         ASN1_TIME_set(X509_getm_notAfter(certificate), absl::ToTimeT(end)) != nullptr;
}

/// No two certificates of an authority have one number.
bool DrawSerial(X509* certificate) {
  unsigned char bytes[kSerialBytes];
  if (RAND_bytes(bytes, sizeof(bytes)) != 1) return false;
  bytes[0] = static_cast<unsigned char>((bytes[0] & 0x7f) | 0x40);  // positive, never short
  const Number number(BN_bin2bn(bytes, sizeof(bytes), nullptr));
  return number != nullptr &&
         BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) != nullptr;
}

absl::Time ToTime(const ASN1_TIME* time) {
  std::tm parts{};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return absl::InfinitePast();
  return absl::FromTM(parts, absl::UTCTimeZone());
}

absl::StatusOr<Identity> IdentityOf(X509* certificate) {
  const Names names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  absl::StatusOr<Identity> identity = absl::InvalidArgumentError("it names no member of a cluster");
  if (names == nullptr) return identity;
  for (int i = 0; i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    const ASN1_IA5STRING* const uri = name->d.uniformResourceIdentifier;
    identity = ParseIdentityUri(
        absl::string_view(reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)),
                          static_cast<size_t>(ASN1_STRING_length(uri))));
    if (identity.ok()) break;
  }
  return identity;
}

absl::StatusOr<Key> DrawKey() {
  Key key(EVP_EC_gen("P-256"));
  if (key == nullptr) return Failed("making a key");
  return key;
}

/// Every certificate of the text.
absl::StatusOr<Store> ReadAuthorities(const std::string& pem) {
  Store store(X509_STORE_new());
  const Bio bio = Reader(pem);
  int count = 0;
  while (true) {
    const Certificate authority(PEM_read_bio_X509(bio.get(), nullptr, NoPassphrase, nullptr));
    if (authority == nullptr) break;
    if (X509_STORE_add_cert(store.get(), authority.get()) != 1)
      return Failed("reading authorities");
    ++count;
  }
  if (count == 0) return absl::InvalidArgumentError("it holds no certificate in PEM");
  return store;
}

}  // namespace

absl::StatusOr<KeyAndCertificate> MakeAuthority(const Validity& validity) {
  CARAVAN_ASSIGN_OR_RETURN(const Key key, DrawKey());
  const Certificate certificate(X509_new());
  X509* const x509 = certificate.get();
  const bool made = x509 != nullptr && X509_set_version(x509, X509_VERSION_3) == 1 &&
                    DrawSerial(x509) &&
                    SetTimes(x509, validity.now, validity.now + validity.lifetime) &&
                    SetName(x509, "Caravan cluster authority") &&
                    X509_set_issuer_name(x509, X509_get_subject_name(x509)) == 1 &&
                    X509_set_pubkey(x509, key.get()) == 1 &&
                    AddExtension(x509, x509, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
                    AddExtension(x509, x509, NID_key_usage, "critical,keyCertSign,cRLSign") &&
                    AddExtension(x509, x509, NID_subject_key_identifier, "hash") &&
                    X509_sign(x509, key.get(), EVP_sha256()) > 0;
  if (!made) return Failed("making an authority");
  return KeyAndCertificate{ToPem(key.get()), ToPem(x509)};
}

absl::StatusOr<std::string> MakeKey() {
  CARAVAN_ASSIGN_OR_RETURN(const Key key, DrawKey());
  return ToPem(key.get());
}

absl::StatusOr<std::string> MakeSigningRequest(const std::string& key_pem) {
  CARAVAN_ASSIGN_OR_RETURN(const Key key, ReadKey(key_pem));
  const Request request(X509_REQ_new());
  const Bio bio = Writer();
  if (request == nullptr || X509_REQ_set_pubkey(request.get(), key.get()) != 1 ||
      X509_REQ_sign(request.get(), key.get(), EVP_sha256()) <= 0 ||
      PEM_write_bio_X509_REQ(bio.get(), request.get()) != 1) {
    return Failed("asking for a certificate");
  }
  return Written(bio);
}

absl::StatusOr<std::string> SignRequest(const KeyAndCertificate& authority,
                                        const std::string& request_pem, const Identity& identity,
                                        const Validity& validity) {
  CARAVAN_RETURN_IF_ERROR(CheckIdentityName(identity.name));
  CARAVAN_ASSIGN_OR_RETURN(const Key authority_key, ReadKey(authority.key_pem));
  CARAVAN_ASSIGN_OR_RETURN(const Certificate issuer, ReadX509(authority.certificate_pem));
  if (X509_check_private_key(issuer.get(), authority_key.get()) != 1) {
    return absl::FailedPreconditionError("the authority's key is not its certificate's");
  }
  const absl::Time authority_end = ToTime(X509_get0_notAfter(issuer.get()));
  if (authority_end <= validity.now) {
    return Expired("the authority", authority_end);
  }
  const absl::Time authority_begin = ToTime(X509_get0_notBefore(issuer.get()));
  if (authority_begin > validity.now) {
    return NotYetValid("the authority", authority_begin);
  }
  const Request request(
      PEM_read_bio_X509_REQ(Reader(request_pem).get(), nullptr, NoPassphrase, nullptr));
  if (request == nullptr) {
    return absl::InvalidArgumentError("it holds no request for a certificate in PEM");
  }
  EVP_PKEY* const key = X509_REQ_get0_pubkey(request.get());
  if (key == nullptr || EVP_PKEY_get_base_id(key) != EVP_PKEY_EC || EVP_PKEY_get_bits(key) != 256) {
    return absl::InvalidArgumentError("the request's key is none over P-256");
  }
  if (X509_REQ_verify(request.get(), key) != 1) {
    return absl::InvalidArgumentError("the request is not signed by its key");
  }
  const Certificate certificate(X509_new());
  X509* const x509 = certificate.get();
  const char* const usage = identity.role == Role::kClient ? "clientAuth" : "serverAuth,clientAuth";
  const bool made =
      x509 != nullptr && X509_set_version(x509, X509_VERSION_3) == 1 && DrawSerial(x509) &&
      SetTimes(x509, validity.now, std::min(validity.now + validity.lifetime, authority_end)) &&
      SetName(x509, ToString(identity)) &&
      X509_set_issuer_name(x509, X509_get_subject_name(issuer.get())) == 1 &&
      X509_set_pubkey(x509, key) == 1 &&
      AddExtension(x509, issuer.get(), NID_basic_constraints, "critical,CA:FALSE") &&
      AddExtension(x509, issuer.get(), NID_key_usage, "critical,digitalSignature") &&
      AddExtension(x509, issuer.get(), NID_ext_key_usage, usage) &&
      AddExtension(x509, issuer.get(), NID_subject_key_identifier, "hash") &&
      AddExtension(x509, issuer.get(), NID_authority_key_identifier, "keyid") &&
      AddExtension(x509, issuer.get(), NID_subject_alt_name,
                   absl::StrCat("URI:", ToUri(identity))) &&
      X509_sign(x509, authority_key.get(), EVP_sha256()) > 0;
  if (!made) return Failed("signing a certificate");
  return ToPem(x509);
}

absl::StatusOr<KeyAndCertificate> IssueIdentity(const KeyAndCertificate& authority,
                                                const Identity& identity,
                                                const Validity& validity) {
  CARAVAN_ASSIGN_OR_RETURN(std::string key, MakeKey());
  CARAVAN_ASSIGN_OR_RETURN(const std::string request, MakeSigningRequest(key));
  CARAVAN_ASSIGN_OR_RETURN(std::string certificate,
                           SignRequest(authority, request, identity, validity));
  return KeyAndCertificate{std::move(key), std::move(certificate)};
}

absl::StatusOr<CertificateFacts> ReadCertificate(const std::string& pem) {
  CARAVAN_ASSIGN_OR_RETURN(const Certificate certificate, ReadX509(pem));
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int digest_bytes = 0;
  if (X509_digest(certificate.get(), EVP_sha256(), digest, &digest_bytes) != 1) {
    return Failed("hashing a certificate");
  }
  return CertificateFacts{
      .identity = IdentityOf(certificate.get()),
      .not_before = ToTime(X509_get0_notBefore(certificate.get())),
      .not_after = ToTime(X509_get0_notAfter(certificate.get())),
      .fingerprint = absl::BytesToHexString(
          absl::string_view(reinterpret_cast<const char*>(digest), digest_bytes)),
  };
}

std::vector<std::string> SplitCertificates(const std::string& pem) {
  std::vector<std::string> certificates;
  const Bio reader = Reader(pem);
  while (true) {
    const Certificate certificate(PEM_read_bio_X509(reader.get(), nullptr, NoPassphrase, nullptr));
    if (certificate == nullptr) return certificates;
    certificates.push_back(ToPem(certificate.get()));
  }
}

absl::StatusOr<std::string> CertificateOfKey(const std::string& certificates_pem,
                                             const std::string& key_pem) {
  CARAVAN_ASSIGN_OR_RETURN(const Key key, ReadKey(key_pem));
  for (std::string& pem : SplitCertificates(certificates_pem)) {
    CARAVAN_ASSIGN_OR_RETURN(const Certificate certificate, ReadX509(pem));
    if (X509_check_private_key(certificate.get(), key.get()) == 1) return std::move(pem);
  }
  return absl::FailedPreconditionError("the authority's key belongs to none of the certificates");
}

absl::Status CheckIdentity(const std::string& authorities_pem, const std::string& identity_pem,
                           absl::Time now) {
  CARAVAN_ASSIGN_OR_RETURN(const Store store, ReadAuthorities(authorities_pem));
  CARAVAN_ASSIGN_OR_RETURN(const Key key, ReadKey(identity_pem));
  CARAVAN_ASSIGN_OR_RETURN(const Certificate certificate, ReadX509(identity_pem));
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return absl::InvalidArgumentError("the key is not the certificate's");
  }
  CARAVAN_RETURN_IF_ERROR(IdentityOf(certificate.get()).status());
  const StoreContext context(X509_STORE_CTX_new());
  if (X509_STORE_CTX_init(context.get(), store.get(), certificate.get(), nullptr) != 1) {
    return Failed("checking a certificate");
  }
  X509_STORE_CTX_set_time(context.get(), 0, absl::ToTimeT(now));
  if (X509_verify_cert(context.get()) == 1) return absl::OkStatus();
  // Whose fault it is: of what is looked at, depth 0 is the certificate itself.
  X509* const faulty = X509_STORE_CTX_get_current_cert(context.get());
  const char* const who = X509_STORE_CTX_get_error_depth(context.get()) > 0
                              ? "the certificate's authority"
                              : "the certificate";
  switch (X509_STORE_CTX_get_error(context.get())) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return Expired(who, ToTime(X509_get0_notAfter(faulty)));
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return NotYetValid(who, ToTime(X509_get0_notBefore(faulty)));
    default:
      return absl::FailedPreconditionError(absl::StrCat(
          "the certificate is not of the authority in ca.pem (",
          X509_verify_cert_error_string(X509_STORE_CTX_get_error(context.get())), ")"));
  }
}

}  // namespace caravan
