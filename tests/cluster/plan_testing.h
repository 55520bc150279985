#ifndef CARAVAN_TESTS_CLUSTER_PLAN_TESTING_H_
#define CARAVAN_TESTS_CLUSTER_PLAN_TESTING_H_

// A small model whose times are predicted, for tests of planners.

#include <cstdint>

#include "model/layer_cost.h"
#include "model/model_config.h"

namespace caravan {

inline ModelConfig SmallModelConfig() {
  ModelConfig config;
  config.hidden_size = 1024;
  config.moe_intermediate_size = 512;
  config.n_routed_experts = 16;
  config.router.num_experts_per_tok = 2;
  config.num_attention_heads = 8;
  config.kv_lora_rank = 64;
  config.qk_nope_head_dim = 16;
  config.qk_rope_head_dim = 16;
  config.v_head_dim = 16;
  return config;
}

/// With 16 experts of `expert_bytes`; 0: without any.
inline LayerCost SmallModelLayer(int64_t always_bytes, int64_t expert_bytes) {
  LayerCost layer;
  layer.expert_bytes = 16 * expert_bytes;
  layer.weight_bytes = always_bytes + layer.expert_bytes;
  if (expert_bytes > 0) {
    layer.num_experts = 16;
    layer.expert_slot_bytes = expert_bytes;
    layer.experts_per_token = 2;
  }
  layer.active_bytes_per_token = always_bytes + 2 * expert_bytes;
  layer.flops_per_token = 4 * (always_bytes + 2 * expert_bytes);
  layer.kv_values_per_token = 80;
  return layer;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_CLUSTER_PLAN_TESTING_H_
