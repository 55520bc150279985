#include "model/gguf/gguf_config.h"

#include <cstdint>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"

namespace caravan {
namespace {

using nlohmann::json;

// ParseModelConfig knows what a model may be; here integers only have to be some.
constexpr int64_t kMax = std::numeric_limits<int32_t>::max();

/// Keys of the architecture: their names without "deepseek2.".
class ArchKeys {
 public:
  explicit ArchKeys(const GgufMetadata& metadata) : metadata_(metadata) {}

  static std::string Name(absl::string_view key) { return absl::StrCat("deepseek2.", key); }
  bool Has(absl::string_view key) const { return metadata_.Has(Name(key)); }
  absl::StatusOr<int64_t> Int(absl::string_view key,
                              std::optional<int64_t> fallback = std::nullopt) const {
    return metadata_.Int(Name(key), 0, kMax, fallback);
  }
  absl::StatusOr<double> Number(absl::string_view key,
                                std::optional<double> fallback = std::nullopt) const {
    return metadata_.Number(Name(key), fallback);
  }
  absl::StatusOr<bool> Bool(absl::string_view key, bool fallback) const {
    return metadata_.Bool(Name(key), fallback);
  }
  absl::StatusOr<std::string> String(absl::string_view key) const {
    return metadata_.String(Name(key));
  }
  absl::Status Error(absl::string_view key, absl::string_view what) const {
    return metadata_.Error(Name(key), what);
  }

 private:
  const GgufMetadata& metadata_;
};

/// What other models of this architecture do to attention, and none of the family does.
absl::Status RefuseOtherArithmetic(const ArchKeys& keys) {
  for (const char* name :
       {"attention.scale", "attention.sliding_window", "attention.temperature_length",
        "attention.temperature_scale", "attn_logit_softcapping", "final_logit_softcapping",
        "logit_scale", "rope.scale_linear", "rope.scaling.attn_factor",
        "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"}) {
    if (keys.Has(name)) return keys.Error(name, "is set, which Caravan does not run");
  }
  return absl::OkStatus();
}

absl::Status AddAttention(const ArchKeys& keys, json& config) {
  CARAVAN_ASSIGN_OR_RETURN(const int64_t heads, keys.Int("attention.head_count"));
  // Where attention runs in the latent space, all heads share one.
  CARAVAN_ASSIGN_OR_RETURN(const int64_t kv_heads, keys.Int("attention.head_count_kv", heads));
  if (kv_heads != heads && kv_heads != 1) {
    return keys.Error("attention.head_count_kv",
                      absl::StrCat("must be 1 or attention.head_count (", heads, ")"));
  }
  config["num_attention_heads"] = heads;
  CARAVAN_ASSIGN_OR_RETURN(const int64_t q_lora_rank, keys.Int("attention.q_lora_rank", 0));
  config["q_lora_rank"] = q_lora_rank == 0 ? json(nullptr) : json(q_lora_rank);
  CARAVAN_ASSIGN_OR_RETURN(config["kv_lora_rank"], keys.Int("attention.kv_lora_rank"));
  const bool is_mla = keys.Has("attention.key_length_mla");
  const char* const key_length_name = is_mla ? "attention.key_length_mla" : "attention.key_length";
  CARAVAN_ASSIGN_OR_RETURN(const int64_t key_length, keys.Int(key_length_name));
  CARAVAN_ASSIGN_OR_RETURN(config["v_head_dim"], keys.Int(is_mla ? "attention.value_length_mla"
                                                                 : "attention.value_length"));
  CARAVAN_ASSIGN_OR_RETURN(const int64_t rope, keys.Int("rope.dimension_count"));
  if (key_length <= rope) {
    return keys.Error(key_length_name,
                      absl::StrCat("must be larger than rope.dimension_count (", rope, ")"));
  }
  config["qk_rope_head_dim"] = rope;
  config["qk_nope_head_dim"] = key_length - rope;
  return absl::OkStatus();
}

absl::Status AddRope(const ArchKeys& keys, bool is_kimi_k2, json& config) {
  CARAVAN_ASSIGN_OR_RETURN(config["rope_theta"], keys.Number("rope.freq_base", 10000));
  if (!keys.Has("rope.scaling.type")) return absl::OkStatus();
  CARAVAN_ASSIGN_OR_RETURN(const std::string type, keys.String("rope.scaling.type"));
  if (type == "none") return absl::OkStatus();
  if (type != "yarn") {
    return keys.Error("rope.scaling.type",
                      absl::StrCat("is \"", type, "\", but Caravan runs only yarn and none"));
  }
  json yarn = {{"type", "yarn"}};
  CARAVAN_ASSIGN_OR_RETURN(yarn["factor"], keys.Number("rope.scaling.factor"));
  CARAVAN_ASSIGN_OR_RETURN(yarn["original_max_position_embeddings"],
                           keys.Int("rope.scaling.original_context_length"));
  CARAVAN_ASSIGN_OR_RETURN(yarn["beta_fast"],
                           keys.Number("rope.scaling.yarn_beta_fast", is_kimi_k2 ? 1 : 32));
  CARAVAN_ASSIGN_OR_RETURN(yarn["beta_slow"], keys.Number("rope.scaling.yarn_beta_slow", 1));
  if (keys.Has("rope.scaling.yarn_log_multiplier")) {
    CARAVAN_ASSIGN_OR_RETURN(const double multiplier,
                             keys.Number("rope.scaling.yarn_log_multiplier"));
    // Through float again, so that 0.0707 gives 0.707 and not 0.7070000000000001.
    const double mscale_all_dim = ShortestDecimal(static_cast<float>(10 * multiplier));
    yarn["mscale"] = mscale_all_dim;
    yarn["mscale_all_dim"] = mscale_all_dim;
  }
  config["rope_scaling"] = std::move(yarn);
  return absl::OkStatus();
}

/// The groups of published models whose older files do not name them.
struct PublishedGroups {
  int64_t layers;
  int64_t hidden;
  int64_t experts;
  int64_t n_group;
  int64_t topk_group;
};
constexpr PublishedGroups kPublishedGroups[] = {
    {61, 7168, 256, 8, 4},  // DeepSeek-V3 and R1
    {60, 5120, 160, 8, 3},  // DeepSeek-V2
};

absl::Status AddGroups(const ArchKeys& keys, json& config) {
  CARAVAN_ASSIGN_OR_RETURN(int64_t n_group, keys.Int("expert_group_count", 0));
  CARAVAN_ASSIGN_OR_RETURN(int64_t topk_group, keys.Int("expert_group_used_count", 0));
  if (n_group == 0) {
    n_group = topk_group = 1;
    for (const PublishedGroups& model : kPublishedGroups) {
      if (config["num_hidden_layers"] == model.layers && config["hidden_size"] == model.hidden &&
          config["n_routed_experts"] == model.experts) {
        n_group = model.n_group;
        topk_group = model.topk_group;
      }
    }
  }
  config["n_group"] = n_group;
  config["topk_group"] = topk_group;
  return absl::OkStatus();
}

absl::Status AddExperts(const ArchKeys& keys, bool has_correction_bias, json& config) {
  CARAVAN_ASSIGN_OR_RETURN(config["n_routed_experts"], keys.Int("expert_count"));
  CARAVAN_ASSIGN_OR_RETURN(config["num_experts_per_tok"], keys.Int("expert_used_count"));
  CARAVAN_ASSIGN_OR_RETURN(config["n_shared_experts"], keys.Int("expert_shared_count", 0));
  CARAVAN_ASSIGN_OR_RETURN(config["moe_intermediate_size"], keys.Int("expert_feed_forward_length"));
  CARAVAN_ASSIGN_OR_RETURN(config["routed_scaling_factor"], keys.Number("expert_weights_scale", 1));
  CARAVAN_ASSIGN_OR_RETURN(config["norm_topk_prob"], keys.Bool("expert_weights_norm", false));
  // DeepSeek-V2's older files do not say: 1 is softmax, 2 sigmoid. All with a bias do.
  CARAVAN_ASSIGN_OR_RETURN(
      const int64_t gating,
      keys.Int("expert_gating_func",
               has_correction_bias ? std::nullopt : std::optional<int64_t>(1)));
  if (gating != 1 && gating != 2) {
    return keys.Error(
        "expert_gating_func",
        absl::StrCat("is ", gating, ", but Caravan runs only 1 (softmax) and 2 (sigmoid)"));
  }
  config["scoring_func"] = gating == 1 ? "softmax" : "sigmoid";
  CARAVAN_RETURN_IF_ERROR(AddGroups(keys, config));
  config["topk_method"] = has_correction_bias     ? "noaux_tc"
                          : config["n_group"] > 1 ? "group_limited_greedy"
                                                  : "greedy";
  return absl::OkStatus();
}

/// num_hidden_layers and num_nextn_predict_layers.
absl::Status AddLayers(const ArchKeys& keys, const TensorSource& tensors, json& config) {
  CARAVAN_ASSIGN_OR_RETURN(const int64_t blocks, keys.Int("block_count"));
  CARAVAN_ASSIGN_OR_RETURN(int64_t nextn, keys.Int("nextn_predict_layers", 0));
  const auto has = [&](int64_t layer, absl::string_view name) {
    return tensors.Find(absl::StrCat("blk.", layer, ".", name)) != nullptr;
  };
  int64_t layers = blocks;
  if (nextn > 0 && nextn < blocks &&
      (has(blocks - nextn, "nextn.eh_proj.weight") || !has(blocks - 1, "attn_norm.weight"))) {
    layers = blocks - nextn;  // They are counted, whether they are there or not.
  }
  if (!has(layers, "nextn.eh_proj.weight")) nextn = 0;
  config["num_hidden_layers"] = layers;
  config["num_nextn_predict_layers"] = nextn;
  return absl::OkStatus();
}

absl::Status AddSpecialTokens(const GgufMetadata& metadata, json& config) {
  CARAVAN_ASSIGN_OR_RETURN(config["bos_token_id"],
                           metadata.Int("tokenizer.ggml.bos_token_id", 0, kMax));
  CARAVAN_ASSIGN_OR_RETURN(const int64_t eos, metadata.Int("tokenizer.ggml.eos_token_id", 0, kMax));
  // The end of a turn ends a reply too.
  CARAVAN_ASSIGN_OR_RETURN(const int64_t eot,
                           metadata.Int("tokenizer.ggml.eot_token_id", 0, kMax, eos));
  config["eos_token_id"] = eot == eos ? json(eos) : json({eos, eot});
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> GgufConfigJson(const GgufMetadata& metadata,
                                           const TensorSource& tensors) {
  constexpr char kArchitecture[] = "general.architecture";
  CARAVAN_ASSIGN_OR_RETURN(const std::string architecture, metadata.String(kArchitecture));
  if (architecture != "deepseek2") {
    return metadata.Error(
        kArchitecture, absl::StrCat("is \"", architecture, "\", but Caravan runs only deepseek2"));
  }
  const ArchKeys keys(metadata);
  CARAVAN_RETURN_IF_ERROR(RefuseOtherArithmetic(keys));
  CARAVAN_ASSIGN_OR_RETURN(const std::string pre, metadata.String("tokenizer.ggml.pre", ""));
  const bool is_kimi_k2 = pre == "kimi-k2";

  json config = {{"hidden_act", "silu"}};
  CARAVAN_RETURN_IF_ERROR(AddLayers(keys, tensors, config));
  const TensorInfo* const embedding = tensors.Find("token_embd.weight");
  CARAVAN_ASSIGN_OR_RETURN(
      config["vocab_size"],
      keys.Int("vocab_size",
               embedding == nullptr ? std::nullopt : std::optional(embedding->shape[0])));
  CARAVAN_ASSIGN_OR_RETURN(config["hidden_size"], keys.Int("embedding_length"));
  CARAVAN_ASSIGN_OR_RETURN(config["intermediate_size"], keys.Int("feed_forward_length"));
  CARAVAN_ASSIGN_OR_RETURN(config["max_position_embeddings"], keys.Int("context_length"));
  CARAVAN_ASSIGN_OR_RETURN(config["rms_norm_eps"], keys.Number("attention.layer_norm_rms_epsilon"));
  config["tie_word_embeddings"] = tensors.Find("output.weight") == nullptr;
  CARAVAN_RETURN_IF_ERROR(AddAttention(keys, config));
  CARAVAN_RETURN_IF_ERROR(AddRope(keys, is_kimi_k2, config));

  CARAVAN_ASSIGN_OR_RETURN(const int64_t num_dense, keys.Int("leading_dense_block_count", 0));
  config["first_k_dense_replace"] = num_dense;
  const bool has_correction_bias =
      tensors.Find(absl::StrCat("blk.", num_dense, ".exp_probs_b.bias")) != nullptr;
  CARAVAN_ASSIGN_OR_RETURN(const int64_t num_experts, keys.Int("expert_count", 0));
  config["n_routed_experts"] = nullptr;
  if (num_experts > 0) CARAVAN_RETURN_IF_ERROR(AddExperts(keys, has_correction_bias, config));
  config["model_type"] = is_kimi_k2            ? "kimi_k2"
                         : has_correction_bias ? "deepseek_v3"
                                               : "deepseek_v2";
  CARAVAN_RETURN_IF_ERROR(AddSpecialTokens(metadata, config));
  return config.dump();
}

}  // namespace caravan
