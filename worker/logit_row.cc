#include "worker/logit_row.h"

#include <optional>

#include "base/status_macros.h"
#include "model/sampler.h"

namespace caravan {

absl::StatusOr<absl::Span<const float>> LogitRow::All() {
  return OnHost(memory_, logits_, vocab_size_, copy_);
}

absl::StatusOr<int32_t> LogitRow::Draw(const v1::SamplingParams& params,
                                       const v1::SamplingHistory& history, int64_t position) {
  if (summary_ != nullptr) {
    const std::optional<int32_t> drawn = DrawToken(*summary_, params, history, position);
    if (drawn.has_value()) return *drawn;
  }
  CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const float> logits, All());
  return DrawToken(logits, params, history, position);
}

absl::StatusOr<ScoredToken> LogitRow::Sample(const v1::SamplingParams& params,
                                             const v1::SamplingHistory& history, int64_t position) {
  if (summary_ != nullptr) {
    std::optional<ScoredToken> sampled = SampleToken(*summary_, params, history, position);
    if (sampled.has_value()) return *std::move(sampled);
  }
  CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const float> logits, All());
  return SampleToken(logits, params, history, position);
}

absl::StatusOr<ScoredToken> LogitRow::Score(int32_t token_id, int num_alternatives) {
  if (summary_ != nullptr) return ScoreToken(*summary_, token_id, num_alternatives);
  CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const float> logits, All());
  return ScoreToken(logits, token_id, num_alternatives);
}

}  // namespace caravan
