#include "cluster/kv_block_name.h"

#include <openssl/sha.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"

namespace caravan {
namespace {

static_assert(std::endian::native == std::endian::little, "names are hashes of little-endian ids");

KvBlockName Hash(absl::Span<const unsigned char> bytes) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(bytes.data(), bytes.size(), digest);
  KvBlockName name;
  std::copy_n(digest, KvBlockName::kBytes, name.bytes.begin());
  return name;
}

}  // namespace

std::string KvBlockName::Hex() const { return absl::BytesToHexString(view()); }

KvBlockName NameKvRoot(absl::string_view identity) {
  return Hash({reinterpret_cast<const unsigned char*>(identity.data()), identity.size()});
}

KvBlockName NameKvBlock(const KvBlockName& before, absl::Span<const int32_t> tokens) {
  std::vector<unsigned char> bytes(KvBlockName::kBytes + tokens.size() * sizeof(int32_t));
  std::copy(before.bytes.begin(), before.bytes.end(), bytes.begin());
  std::memcpy(bytes.data() + KvBlockName::kBytes, tokens.data(), tokens.size() * sizeof(int32_t));
  return Hash(bytes);
}

std::optional<KvBlockName> KvBlockNameFromWire(absl::string_view bytes) {
  if (bytes.size() != KvBlockName::kBytes) return std::nullopt;
  KvBlockName name;
  std::copy(bytes.begin(), bytes.end(), name.bytes.begin());
  return name;
}

std::optional<KvBlockName> KvBlockNameFromHex(absl::string_view hex) {
  const bool is_hex = std::all_of(hex.begin(), hex.end(), [](char c) {
    return absl::ascii_isxdigit(static_cast<unsigned char>(c)) && !absl::ascii_isupper(c);
  });
  if (!is_hex || hex.size() != 2 * KvBlockName::kBytes) return std::nullopt;
  return KvBlockNameFromWire(absl::HexStringToBytes(hex));
}

}  // namespace caravan
