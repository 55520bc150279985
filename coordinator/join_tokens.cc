#include "coordinator/join_tokens.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "cluster/certificate_files.h"

namespace caravan {
namespace {

constexpr absl::string_view kPrefix = "caravan1";
constexpr size_t kIdBytes = 8;
constexpr size_t kSecretBytes = 16;
constexpr size_t kHashBytes = SHA256_DIGEST_LENGTH;

bool IsHex(absl::string_view text, size_t bytes) {
  if (text.size() != 2 * bytes) return false;
  for (const char c : text) {
    if (!absl::ascii_isxdigit(c) || absl::ascii_isupper(c)) return false;
  }
  return true;
}

std::string HashOf(absl::string_view secret) {
  unsigned char hash[kHashBytes];
  SHA256(reinterpret_cast<const unsigned char*>(secret.data()), secret.size(), hash);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(hash), sizeof(hash)));
}

absl::StatusOr<std::string> DrawHex(size_t bytes) {
  std::string drawn(bytes, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(drawn.data()), static_cast<int>(bytes)) != 1) {
    return absl::InternalError("OpenSSL: drawing random bytes failed");
  }
  return absl::BytesToHexString(drawn);
}

/// What a file of a token says.
struct Entry {
  std::string hash;
  Identity identity;
  absl::Time expires;
};

std::optional<Entry> ReadEntry(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadPrivateFile(path);
  if (!text.ok()) return std::nullopt;
  const std::vector<std::string> fields = absl::StrSplit(absl::StripAsciiWhitespace(*text), ' ');
  int64_t expires = 0;
  if (fields.size() != 3 || !IsHex(fields[0], kHashBytes) ||
      !absl::SimpleAtoi(fields[2], &expires)) {
    return std::nullopt;
  }
  absl::StatusOr<Identity> identity = ParseIdentity(fields[1]);
  if (!identity.ok()) return std::nullopt;
  return Entry{fields[0], *std::move(identity), absl::FromUnixSeconds(expires)};
}

}  // namespace

absl::StatusOr<JoinToken> ParseJoinToken(absl::string_view text) {
  const std::vector<std::string> parts = absl::StrSplit(absl::StripAsciiWhitespace(text), '.');
  if (parts.size() != 4 || parts[0] != kPrefix || !IsHex(parts[1], kIdBytes) ||
      !IsHex(parts[2], kSecretBytes) || !IsHex(parts[3], kHashBytes)) {
    return absl::InvalidArgumentError("that is no join token: caravan certs token prints one");
  }
  return JoinToken{parts[1], parts[2], parts[3]};
}

JoinTokens::JoinTokens(std::string directory)
    : authority_directory_(std::move(directory)),
      directory_(JoinPath(authority_directory_, "tokens")) {}

absl::StatusOr<std::string> JoinTokens::Make(const Identity& identity, absl::Time expires,
                                             absl::Time now) {
  CARAVAN_RETURN_IF_ERROR(CheckIdentityName(identity.name));
  CARAVAN_ASSIGN_OR_RETURN(const KeyAndCertificate authority, ReadAuthority(authority_directory_));
  CARAVAN_ASSIGN_OR_RETURN(const CertificateFacts facts,
                           ReadCertificate(authority.certificate_pem));
  CARAVAN_RETURN_IF_ERROR(MakePrivateDirectory(directory_));
  RemoveExpired(now);
  CARAVAN_ASSIGN_OR_RETURN(const std::string id, DrawHex(kIdBytes));
  CARAVAN_ASSIGN_OR_RETURN(const std::string secret, DrawHex(kSecretBytes));
  CARAVAN_RETURN_IF_ERROR(WritePrivateFile(
      JoinPath(directory_, id), absl::StrCat(HashOf(secret), " ", ToString(identity), " ",
                                             absl::ToUnixSeconds(expires), "\n")));
  return absl::StrCat(kPrefix, ".", id, ".", secret, ".", facts.fingerprint);
}

bool JoinTokens::Knows(const std::string& id, absl::Time now) const {
  if (!IsHex(id, kIdBytes)) return false;  // it names a file
  const std::optional<Entry> entry = ReadEntry(JoinPath(directory_, id));
  return entry.has_value() && entry->expires > now;
}

absl::StatusOr<Identity> JoinTokens::Redeem(const std::string& id, const std::string& secret,
                                            absl::Time now) {
  const absl::Status refused = absl::PermissionDeniedError(
      "the join token is unknown, used, expired or wrong: caravan certs token makes another");
  if (!IsHex(id, kIdBytes)) return refused;  // it names a file
  const std::string path = JoinPath(directory_, id);
  const std::optional<Entry> entry = ReadEntry(path);
  const std::string shown = HashOf(secret);
  if (!entry.has_value() || entry->expires <= now ||
      CRYPTO_memcmp(entry->hash.data(), shown.data(), shown.size()) != 0) {
    return refused;
  }
  // Of several that show it at once, one takes it away.
  if (::unlink(path.c_str()) != 0) return refused;
  return entry->identity;
}

void JoinTokens::RemoveExpired(absl::Time now) const {
  std::error_code error;
  for (const auto& file : std::filesystem::directory_iterator(directory_, error)) {
    const std::optional<Entry> entry = ReadEntry(file.path().string());
    if (entry.has_value() && entry->expires <= now) ::unlink(file.path().c_str());
  }
}

}  // namespace caravan
