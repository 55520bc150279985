#include "coordinator/http/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{1} << 20;

std::array<uint8_t, 32> Sha256(absl::string_view text) {
  static_assert(SHA256_DIGEST_LENGTH == 32);
  std::array<uint8_t, 32> hash;
  SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(), hash.data());
  return hash;
}

}  // namespace

absl::StatusOr<ApiKeys> ApiKeys::Load(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  ApiKeys keys;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    for (const char c : line) {
      if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) {
        return absl::InvalidArgumentError(absl::StrCat(
            path, ": line ", number, ": a key has printable ASCII characters only, and no space"));
      }
    }
    keys.hashes_.push_back(Sha256(line));
  }
  if (keys.hashes_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": holds no API key"));
  }
  return keys;
}

bool ApiKeys::Authorizes(absl::string_view authorization) const {
  if (!absl::StartsWithIgnoreCase(authorization, "Bearer ")) return false;
  authorization.remove_prefix(7);
  const Hash shown = Sha256(absl::StripAsciiWhitespace(authorization));
  // Every key is compared, so that the time does not tell which one matched.
  int matches = 0;
  for (const Hash& hash : hashes_) {
    matches |= CRYPTO_memcmp(hash.data(), shown.data(), hash.size()) == 0 ? 1 : 0;
  }
  return matches != 0;
}

}  // namespace caravan
