#ifndef CARAVAN_TESTS_MODEL_PUBLISHED_CONFIGS_H_
#define CARAVAN_TESTS_MODEL_PUBLISHED_CONFIGS_H_

// The sizes and switches of config.json as published for each model of the family, without the
// fields that nobody reads at inference.

#include "nlohmann/json.hpp"

namespace caravan {

inline nlohmann::json DeepSeekR1Config() {
  return nlohmann::json::parse(R"json({
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1,
    "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
    "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
    "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                     "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 129280})json");
}

inline nlohmann::json KimiK2Config() {
  nlohmann::json config = DeepSeekR1Config();
  config.merge_patch(nlohmann::json::parse(R"json({
    "model_type": "kimi_k2", "bos_token_id": 163584, "eos_token_id": [163585, 163586],
    "first_k_dense_replace": 1, "max_position_embeddings": 131072, "n_group": 1, "topk_group": 1,
    "n_routed_experts": 384, "num_attention_heads": 64, "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0, "rope_theta": 50000.0, "rope_scaling": {"beta_fast": 1.0, "factor": 32.0},
    "routed_scaling_factor": 2.827, "vocab_size": 163840})json"));
  return config;
}

inline nlohmann::json DeepSeekV2Config() {
  return nlohmann::json::parse(R"json({
    "model_type": "deepseek_v2", "attention_bias": false, "aux_loss_alpha": 0.001,
    "bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 1,
    "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 12288, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "moe_intermediate_size": 1536, "moe_layer_freq": 1,
    "n_group": 8, "n_routed_experts": 160, "n_shared_experts": 2, "norm_topk_prob": false,
    "num_attention_heads": 128, "num_experts_per_tok": 6, "num_hidden_layers": 60,
    "num_key_value_heads": 128, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707,
                     "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096,
                     "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 16.0, "scoring_func": "softmax",
    "tie_word_embeddings": false, "topk_group": 3, "topk_method": "group_limited_greedy",
    "v_head_dim": 128, "vocab_size": 102400})json");
}

inline nlohmann::json DeepSeekV2LiteConfig() {
  nlohmann::json config = DeepSeekV2Config();
  config.merge_patch(nlohmann::json::parse(R"json({
    "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_group": 1,
    "topk_group": 1, "n_routed_experts": 64, "num_attention_heads": 16, "num_hidden_layers": 27,
    "num_key_value_heads": 16, "routed_scaling_factor": 1.0, "topk_method": "greedy"})json"));
  config["q_lora_rank"] = nullptr;
  return config;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_MODEL_PUBLISHED_CONFIGS_H_
