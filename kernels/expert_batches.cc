#include "kernels/expert_batches.h"

#include "base/check.h"

namespace caravan {

ResidentExperts::ResidentExperts(absl::Span<const FfnWeights> experts,
                                 absl::Span<const int32_t> expert_ids) {
  std::vector<bool> is_chosen(experts.size());
  for (const int32_t id : expert_ids) {
    CARAVAN_CHECK(id >= 0 && id < static_cast<int64_t>(experts.size()));
    is_chosen[static_cast<size_t>(id)] = true;
  }
  for (size_t id = 0; id < experts.size(); ++id) {
    if (is_chosen[id]) batch_.push_back({static_cast<int32_t>(id), experts[id]});
  }
}

ResidentExperts::ResidentExperts(absl::Span<const FfnWeights> experts) {
  batch_.reserve(experts.size());
  for (const FfnWeights& expert : experts) {
    batch_.push_back({static_cast<int32_t>(batch_.size()), expert});
  }
}

absl::StatusOr<absl::Span<const LoadedExpert>> ResidentExperts::Next() {
  if (given_) return absl::Span<const LoadedExpert>();
  given_ = true;
  return absl::MakeConstSpan(batch_);
}

}  // namespace caravan
