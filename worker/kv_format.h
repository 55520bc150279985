#ifndef CARAVAN_WORKER_KV_FORMAT_H_
#define CARAVAN_WORKER_KV_FORMAT_H_

// What the bytes of a full KV block's layers depend on but for its name: in files, and between
// workers.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/dtype.h"

namespace caravan {

/// How a layer of a block is laid out: rows of `width` values, one a token.
struct KvFormat {
  DType dtype = DType::kF32;
  int64_t block_tokens = 0;
  int64_t width = 0;  // MlaShape::kv_width()

  bool operator==(const KvFormat&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const KvFormat& format) {
    return H::combine(std::move(h), format.dtype, format.block_tokens, format.width);
  }

  int64_t layer_bytes() const { return block_tokens * DTypeBytes(dtype, width); }
  /// DTYPE-TOKENSxWIDTH, as "F16-64x576".
  std::string ToString() const;
};

/// nullopt: not what ToString gives, or of a type, a number of tokens or a width that no KV cache
/// has.
std::optional<KvFormat> ParseKvFormat(absl::string_view text);

/// Layers of the model that have keys and values: [first, end()).
struct LayerRange {
  int first = 0;
  int num = 0;

  int end() const { return first + num; }
  bool operator==(const LayerRange&) const = default;
  bool Contains(const LayerRange& other) const {
    return first <= other.first && other.end() <= end();
  }
};

/// More layers than any model has.
inline constexpr int kMostKvLayers = 4096;

/// What both have; num is 0 where that is nothing.
LayerRange Overlap(const LayerRange& a, const LayerRange& b);

/// What of `wanted` no range of `there` has, in ascending order.
std::vector<LayerRange> Without(const LayerRange& wanted, absl::Span<const LayerRange> there);

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_FORMAT_H_
