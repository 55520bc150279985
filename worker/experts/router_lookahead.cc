#include "worker/experts/router_lookahead.h"

#include <algorithm>

#include "base/check.h"

namespace caravan {

RouterLookahead::RouterLookahead(const ModelConfig& config, Backend& backend)
    : config_(config),
      backend_(backend),
      normed_(static_cast<size_t>(kMaxRows * config.hidden_size)),
      logits_(static_cast<size_t>(kMaxRows * config.n_routed_experts)),
      expert_ids_(static_cast<size_t>(kMaxRows * config.router.num_experts_per_tok)),
      weights_(expert_ids_.size()) {}

int64_t RouterLookahead::num_bytes() const {
  const size_t floats = normed_.size() + logits_.size() + weights_.size();
  return static_cast<int64_t>(floats * sizeof(float) + expert_ids_.size() * sizeof(int32_t));
}

RouterLookahead::Choice RouterLookahead::Choose(const LayerWeights& layer, const float* hidden,
                                                const float* delta, int64_t num_rows) {
  CARAVAN_CHECK(layer.router.rows > 0 && num_rows >= 1 && num_rows <= kMaxRows);
  const int64_t width = config_.hidden_size;
  float* const normed = normed_.data();
  std::copy_n(hidden, num_rows * width, normed);
  backend_.Add(delta, num_rows * width, normed);
  backend_.RmsNorm(normed, num_rows, width, layer.post_attention_layernorm,
                   static_cast<float>(config_.rms_norm_eps), normed);
  backend_.MatMul(layer.router, normed, num_rows, logits_.data());
  backend_.Route(config_.router, logits_.data(), layer.e_score_correction_bias, num_rows,
                 expert_ids_.data(), weights_.data());
  const auto count = static_cast<size_t>(num_rows * config_.router.num_experts_per_tok);
  return {absl::MakeConstSpan(expert_ids_).first(count),
          absl::MakeConstSpan(weights_).first(count)};
}

}  // namespace caravan
