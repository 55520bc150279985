#include "worker/files/piece_check.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace caravan {

absl::Status PieceCheck::Add(absl::Span<const std::byte> bytes) {
  if (place_.is_rest()) {
    hash_.Add(bytes);
    at_ += static_cast<int64_t>(bytes.size());
    return absl::OkStatus();
  }
  const PackedExperts& experts = *file_->experts;
  while (!bytes.empty()) {
    const int64_t expert = (at_ - experts.offset) / experts.stride;
    const int64_t end = experts.offset + (expert + 1) * experts.stride;
    const auto size = std::min(static_cast<size_t>(end - at_), bytes.size());
    hash_.Add(bytes.first(size));
    bytes.remove_prefix(size);
    at_ += static_cast<int64_t>(size);
    if (at_ < end) break;
    if (hash_.Digest() != experts.hashes[static_cast<size_t>(expert)]) {
      has_wrong_bytes_ = true;
      return absl::DataLossError(absl::StrCat("expert ", expert, " is not what the manifest says"));
    }
    hash_ = FileHash();
  }
  return absl::OkStatus();
}

}  // namespace caravan
