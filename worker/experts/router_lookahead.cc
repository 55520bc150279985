#include "worker/experts/router_lookahead.h"

#include "base/check.h"
#include "base/status_macros.h"

namespace caravan {

absl::StatusOr<RouterLookahead> RouterLookahead::Create(const ModelConfig& config,
                                                        Backend& backend) {
  Memory& memory = backend.memory();
  const int64_t k = config.router.num_experts_per_tok;
  RouterLookahead lookahead(config, backend);
  CARAVAN_ASSIGN_OR_RETURN(lookahead.normed_,
                           AllocateValues<float>(memory, kMaxRows * config.hidden_size));
  CARAVAN_ASSIGN_OR_RETURN(lookahead.logits_,
                           AllocateValues<float>(memory, kMaxRows * config.n_routed_experts));
  CARAVAN_ASSIGN_OR_RETURN(lookahead.expert_ids_, AllocateValues<int32_t>(memory, kMaxRows * k));
  CARAVAN_ASSIGN_OR_RETURN(lookahead.weights_, AllocateValues<float>(memory, kMaxRows * k));
  return lookahead;
}

int64_t RouterLookahead::num_bytes() const {
  return normed_.bytes() + logits_.bytes() + expert_ids_.bytes() + weights_.bytes();
}

absl::StatusOr<RouterLookahead::Choice> RouterLookahead::Choose(const LayerWeights& layer,
                                                                const float* hidden,
                                                                const float* delta,
                                                                int64_t num_rows) {
  CARAVAN_CHECK(layer.router.rows > 0 && num_rows >= 1 && num_rows <= kMaxRows);
  Memory& memory = backend_->memory();
  const int64_t count = num_rows * config_->hidden_size;
  float* const normed = normed_.floats();
  CARAVAN_RETURN_IF_ERROR(memory.Copy(hidden, count * static_cast<int64_t>(sizeof(float)), normed));
  backend_->Add(delta, count, normed);
  backend_->RmsNorm(normed, num_rows, config_->hidden_size, layer.post_attention_layernorm,
                    static_cast<float>(config_->rms_norm_eps), normed);
  backend_->MatMul(layer.router, normed, num_rows, logits_.floats());
  backend_->Route(config_->router, logits_.floats(), layer.e_score_correction_bias, num_rows,
                  expert_ids_.as<int32_t>(), weights_.floats());
  const int64_t num_choices = num_rows * config_->router.num_experts_per_tok;
  Choice choice;
  CARAVAN_ASSIGN_OR_RETURN(choice.expert_ids,
                           OnHost(memory, expert_ids_.as<const int32_t>(), num_choices, host_ids_));
  CARAVAN_ASSIGN_OR_RETURN(choice.weights,
                           OnHost(memory, weights_.as<const float>(), num_choices, host_weights_));
  return choice;
}

}  // namespace caravan
