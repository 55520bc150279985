#include "worker/kv_format.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/kv_rows.h"

namespace caravan {
namespace {

// Far above what there is; so that no product of them is out of range.
constexpr int64_t kMostTokens = 1 << 16;
constexpr int64_t kMostWidth = 1 << 20;

}  // namespace

std::string KvFormat::ToString() const {
  return absl::StrCat(DTypeName(dtype), "-", block_tokens, "x", width);
}

std::optional<KvFormat> ParseKvFormat(absl::string_view text) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits('-', 1));
  const std::pair<absl::string_view, absl::string_view> sizes =
      absl::StrSplit(parts.second, absl::MaxSplits('x', 1));
  const std::optional<DType> dtype = ParseDType(parts.first);
  KvFormat format;
  if (!dtype.has_value() || !IsKvDType(*dtype) ||
      !absl::SimpleAtoi(sizes.first, &format.block_tokens) ||
      !absl::SimpleAtoi(sizes.second, &format.width)) {
    return std::nullopt;
  }
  format.dtype = *dtype;
  if (format.block_tokens < 1 || format.block_tokens > kMostTokens || format.width < 1 ||
      format.width > kMostWidth || format.width % BlockOf(*dtype).values != 0 ||
      format.ToString() != text) {
    return std::nullopt;
  }
  return format;
}

LayerRange Overlap(const LayerRange& a, const LayerRange& b) {
  const int first = std::max(a.first, b.first);
  return {first, std::max(0, std::min(a.end(), b.end()) - first)};
}

std::vector<LayerRange> Without(const LayerRange& wanted, absl::Span<const LayerRange> there) {
  std::vector<LayerRange> sorted(there.begin(), there.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const LayerRange& a, const LayerRange& b) { return a.first < b.first; });
  std::vector<LayerRange> missing;
  int next = wanted.first;
  for (const LayerRange& range : sorted) {
    const int until = std::min(range.first, wanted.end());
    if (until > next) missing.push_back({next, until - next});
    next = std::max(next, range.end());
  }
  if (next < wanted.end()) missing.push_back({next, wanted.end() - next});
  return missing;
}

}  // namespace caravan
