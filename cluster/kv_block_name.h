#ifndef CARAVAN_CLUSTER_KV_BLOCK_NAME_H_
#define CARAVAN_CLUSTER_KV_BLOCK_NAME_H_

// Names full KV blocks by what they hold, for longer than any process lives: a hash of the model
// and of all tokens from the first to the block's last. It is one that nobody can find two alike
// for (SHA-256, its first half), as whoever could would be given another's context.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace caravan {

struct KvBlockName {
  static constexpr size_t kBytes = 16;

  std::array<uint8_t, kBytes> bytes = {};

  bool operator==(const KvBlockName&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const KvBlockName& name) {
    return H::combine(std::move(h), name.bytes);
  }

  /// As on the wire.
  absl::string_view view() const {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  /// 32 hexadecimal digits.
  std::string Hex() const;
};

/// Names that a worker tells of, the newest, as one report takes well: 1.6 MB, for some 6 million
/// tokens.
inline constexpr size_t kMostArchivedNames = 100'000;

/// What the names of a model's first blocks follow. `identity` is the model's (ModelIdentity).
KvBlockName NameKvRoot(absl::string_view identity);

/// Of the block that holds `tokens` behind those of `before`.
KvBlockName NameKvBlock(const KvBlockName& before, absl::Span<const int32_t> tokens);

/// nullopt: these are not kBytes bytes.
std::optional<KvBlockName> KvBlockNameFromWire(absl::string_view bytes);
/// nullopt: these are not what Hex gives.
std::optional<KvBlockName> KvBlockNameFromHex(absl::string_view hex);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_KV_BLOCK_NAME_H_
