#ifndef CARAVAN_MODEL_MODEL_CONFIG_H_
#define CARAVAN_MODEL_MODEL_CONFIG_H_

// What config.json says of a model of the DeepSeek family: deepseek_v2, deepseek_v3 (R1, V3, V3.1)
// and kimi_k2. Checked when parsed, so that nobody after it meets an impossible size.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/backend.h"

namespace caravan {

/// rope_scaling of type yarn (YaRN, arXiv:2309.00071).
struct YarnScaling {
  double factor = 1;
  int64_t original_max_position_embeddings = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 0;
};

/// Names and meanings as in config.json.
struct ModelConfig {
  std::string model_type;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;      // of a dense layer's FFN
  int64_t moe_intermediate_size = 0;  // of one expert
  int num_hidden_layers = 0;
  int num_nextn_predict_layers = 0;  // of multi-token prediction, after the others
  int64_t num_attention_heads = 0;
  int64_t n_shared_experts = 0;
  int64_t n_routed_experts = 0;  // 0: every layer is dense
  int64_t q_lora_rank = 0;       // 0: queries are projected at once (q_proj)
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  RouterShape router;
  int first_k_dense_replace = 0;
  int moe_layer_freq = 1;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<YarnScaling> yarn;
  bool tie_word_embeddings = false;
  int32_t bos_token_id = 0;
  std::vector<int32_t> eos_token_ids;

  bool IsMoeLayer(int layer) const;
  MlaShape Mla() const;  // with the softmax scale that YaRN asks for
};

/// Errors: InvalidArgument - not JSON, a field missing, of the wrong type or out of range, or a
///         model_type, activation, quantization or rope scaling that Caravan does not run. Each
///         names `origin` (the file) and the field.
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json_text, absl::string_view origin);

/// What Backend needs of a config's rotary embedding: inv_freq [qk_rope_head_dim / 2] (YaRN's
/// blend when it is on), and the factor on cosine and sine.
struct RotaryEmbedding {
  std::vector<float> inv_freq;
  float amplitude = 1;
  RopeTable Table() const { return RopeTable{inv_freq, amplitude}; }
};
RotaryEmbedding MakeRotaryEmbedding(const ModelConfig& config);

}  // namespace caravan

#endif  // CARAVAN_MODEL_MODEL_CONFIG_H_
