#include "kernels/cpu/router.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/types/span.h"
#include "base/check.h"

namespace caravan {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

float KeyOf(float score) { return std::isnan(score) ? kNever : score; }

void Score(ScoringFunc scoring, absl::Span<const float> logits, float* scores) {
  const size_t n = logits.size();
  if (scoring == ScoringFunc::kSigmoid) {
    for (size_t e = 0; e < n; ++e) scores[e] = 1 / (1 + std::exp(-logits[e]));
    return;
  }
  const float max = *std::max_element(logits.begin(), logits.end());
  float total = 0;
  for (size_t e = 0; e < n; ++e) total += scores[e] = std::exp(logits[e] - max);
  for (size_t e = 0; e < n; ++e) scores[e] /= total;
}

/// The indices of the largest keys, chosen.size() of them, ties to the lower, in ascending order.
void Choose(absl::Span<const float> keys, absl::Span<int32_t> chosen) {
  // Insertion into a short list sorted by falling key: a later equal key stays behind.
  size_t count = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (count == chosen.size()) {
      if (count == 0 || !(keys[i] > keys[chosen[count - 1]])) continue;
      --count;
    }
    size_t at = count++;
    for (; at > 0 && keys[i] > keys[chosen[at - 1]]; --at) chosen[at] = chosen[at - 1];
    chosen[at] = static_cast<int32_t>(i);
  }
  std::sort(chosen.begin(), chosen.end());
}

float GroupKey(TopkMethod method, absl::Span<const float> keys) {
  float best = kNever;
  float second = kNever;
  for (const float key : keys) {
    second = std::max(second, std::min(best, key));
    best = std::max(best, key);
  }
  const bool counts_two = method == TopkMethod::kNoauxTc && keys.size() > 1;
  return KeyOf(counts_two ? best + second : best);
}

}  // namespace

void Router::Route(const RouterShape& shape, const float* logits, const float* bias,
                   int32_t* expert_ids, float* weights) {
  const int64_t num_experts = shape.n_routed_experts;
  const int64_t group_size = num_experts / shape.n_group;
  CARAVAN_CHECK(group_size * shape.n_group == num_experts);
  CARAVAN_CHECK(shape.topk_group <= shape.n_group && shape.num_experts_per_tok <= num_experts);
  const bool is_noaux = shape.topk_method == TopkMethod::kNoauxTc;

  scores_.resize(num_experts);
  keys_.resize(num_experts);
  Score(shape.scoring_func, absl::MakeConstSpan(logits, num_experts), scores_.data());
  for (int64_t e = 0; e < num_experts; ++e) {
    keys_[e] = KeyOf(is_noaux ? scores_[e] + bias[e] : scores_[e]);
  }

  if (shape.topk_method != TopkMethod::kGreedy && shape.topk_group < shape.n_group) {
    group_keys_.resize(shape.n_group);
    groups_.resize(shape.topk_group);
    for (int64_t g = 0; g < shape.n_group; ++g) {
      group_keys_[g] =
          GroupKey(shape.topk_method, absl::MakeConstSpan(&keys_[g * group_size], group_size));
    }
    Choose(group_keys_, absl::MakeSpan(groups_));
    for (int64_t g = 0; g < shape.n_group; ++g) {
      if (std::binary_search(groups_.begin(), groups_.end(), g)) continue;
      std::fill_n(&keys_[g * group_size], group_size, kNever);
    }
  }

  const absl::Span<int32_t> chosen(expert_ids, shape.num_experts_per_tok);
  Choose(keys_, chosen);
  float factor = shape.routed_scaling_factor;
  if (shape.norm_topk_prob) {
    float total = 0;
    for (const int32_t expert : chosen) total += scores_[expert];
    factor = (is_noaux ? factor : 1) / (total + 1e-20f);
  }
  for (size_t i = 0; i < chosen.size(); ++i) weights[i] = scores_[chosen[i]] * factor;
}

}  // namespace caravan
