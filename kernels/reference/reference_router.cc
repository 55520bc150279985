#include "kernels/reference/reference_router.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/check.h"

namespace caravan {
namespace {

using Vector = std::vector<double>;

/// Sigmoid (DeepSeek-V3, arXiv:2412.19437, equation 15) or softmax (DeepSeek-V2,
/// arXiv:2405.04434, equation 22) of the logits.
Vector Scores(const RouterShape& shape, const float* logits) {
  Vector scores(logits, logits + shape.n_routed_experts);
  if (shape.scoring_func == ScoringFunc::kSigmoid) {
    for (double& score : scores) score = 1 / (1 + std::exp(-score));
    return scores;
  }
  const double max = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (double& score : scores) total += score = std::exp(score - max);
  for (double& score : scores) score /= total;
  return scores;
}

/// The indices of the `count` largest keys, ties to the lower index, in ascending order.
std::vector<int64_t> Best(const Vector& keys, int64_t count) {
  std::vector<int64_t> order(keys.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&keys](int64_t a, int64_t b) { return keys[a] > keys[b]; });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace

void ReferenceRouteRow(const RouterShape& shape, const float* logits, const float* bias,
                       int32_t* expert_ids, float* weights) {
  const int64_t group_size = shape.n_routed_experts / shape.n_group;
  CARAVAN_CHECK(group_size * shape.n_group == shape.n_routed_experts);
  CARAVAN_CHECK(shape.num_experts_per_tok <= shape.n_routed_experts);
  const Vector scores = Scores(shape, logits);

  // What the choice goes by: the score, with the correction bias where there is one.
  Vector keys = scores;
  for (int64_t e = 0; e < shape.n_routed_experts; ++e) {
    if (shape.topk_method == TopkMethod::kNoauxTc) keys[e] += bias[e];
    if (std::isnan(keys[e])) keys[e] = -INFINITY;
  }

  if (shape.topk_method != TopkMethod::kGreedy) {
    const int64_t counted = shape.topk_method == TopkMethod::kNoauxTc ? 2 : 1;
    Vector group_scores;
    for (int64_t group = 0; group < shape.n_group; ++group) {
      Vector members(keys.begin() + group * group_size, keys.begin() + (group + 1) * group_size);
      std::sort(members.rbegin(), members.rend());
      members.resize(std::min(counted, group_size));
      const double sum = std::accumulate(members.begin(), members.end(), 0.0);
      group_scores.push_back(std::isnan(sum) ? -INFINITY : sum);
    }
    Vector masked(keys.size(), -INFINITY);
    for (const int64_t group : Best(group_scores, shape.topk_group)) {
      std::copy_n(keys.begin() + group * group_size, group_size,
                  masked.begin() + group * group_size);
    }
    keys = masked;
  }

  const std::vector<int64_t> chosen = Best(keys, shape.num_experts_per_tok);
  double factor = shape.routed_scaling_factor;
  if (shape.norm_topk_prob) {
    double total = 1e-20;
    for (const int64_t expert : chosen) total += scores[expert];
    // DeepSeek-V2's routers scale instead of normalising; V3's do both.
    factor = (shape.topk_method == TopkMethod::kNoauxTc ? factor : 1) / total;
  }
  for (size_t i = 0; i < chosen.size(); ++i) {
    expert_ids[i] = static_cast<int32_t>(chosen[i]);
    weights[i] = static_cast<float>(scores[chosen[i]] * factor);
  }
}

}  // namespace caravan
