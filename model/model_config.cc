#include "model/model_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

using nlohmann::json;

// Far past any model of the family, and small enough that no product of two or three of them
// overflows.
constexpr int64_t kMaxHidden = 65536;
constexpr int64_t kMaxIntermediate = int64_t{1} << 20;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxVocab = int64_t{1} << 22;
constexpr int64_t kMaxExperts = 4096;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxPositions = int64_t{1} << 30;

absl::Status Unsupported(const JsonFields& fields, absl::string_view name, absl::string_view value,
                         absl::string_view supported) {
  return fields.Error(name, absl::StrCat("is \"", value, "\", but Caravan runs only ", supported));
}

/// Where null says "none of it", absence does not: that is more likely another kind of model.
absl::StatusOr<int64_t> IntOrNull(const json& object, const JsonFields& fields, const char* name,
                                  int64_t max) {
  if (object.contains(name) && object[name].is_null()) return 0;
  return fields.Int(name, 0, max);
}

absl::Status ParseSizes(const json& object, const JsonFields& fields, ModelConfig& config) {
  CARAVAN_ASSIGN_OR_RETURN(config.vocab_size, fields.Int("vocab_size", 1, kMaxVocab));
  CARAVAN_ASSIGN_OR_RETURN(config.hidden_size, fields.Int("hidden_size", 1, kMaxHidden));
  CARAVAN_ASSIGN_OR_RETURN(config.intermediate_size,
                           fields.Int("intermediate_size", 1, kMaxIntermediate));
  CARAVAN_ASSIGN_OR_RETURN(config.num_hidden_layers,
                           fields.Int("num_hidden_layers", 1, kMaxLayers));
  CARAVAN_ASSIGN_OR_RETURN(config.num_nextn_predict_layers,
                           fields.Int("num_nextn_predict_layers", 0, kMaxLayers, 0));
  CARAVAN_ASSIGN_OR_RETURN(config.num_attention_heads,
                           fields.Int("num_attention_heads", 1, kMaxHeads));
  CARAVAN_ASSIGN_OR_RETURN(config.q_lora_rank,
                           IntOrNull(object, fields, "q_lora_rank", kMaxHidden));
  CARAVAN_ASSIGN_OR_RETURN(config.kv_lora_rank, fields.Int("kv_lora_rank", 1, kMaxHidden));
  CARAVAN_ASSIGN_OR_RETURN(config.qk_nope_head_dim, fields.Int("qk_nope_head_dim", 1, kMaxHeadDim));
  CARAVAN_ASSIGN_OR_RETURN(config.qk_rope_head_dim, fields.Int("qk_rope_head_dim", 2, kMaxHeadDim));
  if (config.qk_rope_head_dim % 2 != 0) return fields.Error("qk_rope_head_dim", "must be even");
  CARAVAN_ASSIGN_OR_RETURN(config.v_head_dim, fields.Int("v_head_dim", 1, kMaxHeadDim));
  CARAVAN_ASSIGN_OR_RETURN(config.max_position_embeddings,
                           fields.Int("max_position_embeddings", 1, kMaxPositions));
  CARAVAN_ASSIGN_OR_RETURN(config.rms_norm_eps, fields.Number("rms_norm_eps", 0, 1));
  CARAVAN_ASSIGN_OR_RETURN(config.tie_word_embeddings, fields.Bool("tie_word_embeddings", false));
  return absl::OkStatus();
}

/// What would change the arithmetic, and is not there.
absl::Status RefuseOtherArithmetic(const JsonFields& fields, const ModelConfig& config) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string hidden_act, fields.String("hidden_act"));
  if (hidden_act != "silu") return Unsupported(fields, "hidden_act", hidden_act, "silu");
  CARAVAN_ASSIGN_OR_RETURN(const bool attention_bias, fields.Bool("attention_bias", false));
  if (attention_bias) return Unsupported(fields, "attention_bias", "true", "false");
  CARAVAN_ASSIGN_OR_RETURN(const bool rope_interleave, fields.Bool("rope_interleave", true));
  if (!rope_interleave) return Unsupported(fields, "rope_interleave", "false", "true");
  CARAVAN_ASSIGN_OR_RETURN(
      const int64_t num_kv_heads,
      fields.Int("num_key_value_heads", 1, kMaxHeads, config.num_attention_heads));
  if (num_kv_heads != config.num_attention_heads) {
    return fields.Error("num_key_value_heads", absl::StrCat("must equal num_attention_heads (",
                                                            config.num_attention_heads, ")"));
  }
  if (!fields.Has("quantization_config")) return absl::OkStatus();
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields quantization, fields.Object("quantization_config"));
  CARAVAN_ASSIGN_OR_RETURN(const std::string method, quantization.String("quant_method"));
  if (method != "fp8") return Unsupported(quantization, "quant_method", method, "fp8");
  CARAVAN_ASSIGN_OR_RETURN(const std::string format, quantization.String("fmt", "e4m3"));
  if (format != "e4m3") return Unsupported(quantization, "fmt", format, "e4m3");
  CARAVAN_ASSIGN_OR_RETURN(const json* const block, quantization.Array("weight_block_size"));
  if (*block != json::array({kFp8BlockSize, kFp8BlockSize})) {
    return quantization.Error("weight_block_size",
                              absl::StrCat("must be [", kFp8BlockSize, ", ", kFp8BlockSize, "]"));
  }
  return absl::OkStatus();
}

absl::Status ParseExperts(const json& object, const JsonFields& fields, ModelConfig& config) {
  RouterShape& router = config.router;
  CARAVAN_ASSIGN_OR_RETURN(config.n_routed_experts,
                           IntOrNull(object, fields, "n_routed_experts", kMaxExperts));
  if (config.n_routed_experts == 0) return absl::OkStatus();
  router.n_routed_experts = config.n_routed_experts;
  CARAVAN_ASSIGN_OR_RETURN(config.n_shared_experts,
                           IntOrNull(object, fields, "n_shared_experts", kMaxExperts));
  CARAVAN_ASSIGN_OR_RETURN(config.moe_intermediate_size,
                           fields.Int("moe_intermediate_size", 1, kMaxIntermediate));
  CARAVAN_ASSIGN_OR_RETURN(config.first_k_dense_replace,
                           fields.Int("first_k_dense_replace", 0, kMaxLayers));
  CARAVAN_ASSIGN_OR_RETURN(config.moe_layer_freq, fields.Int("moe_layer_freq", 1, kMaxLayers, 1));

  // DeepSeek-V2's published configs leave these two to their defaults; V3's and K2's name them.
  const bool is_v2 = config.model_type == "deepseek_v2";
  CARAVAN_ASSIGN_OR_RETURN(
      const std::string scoring,
      fields.String("scoring_func", is_v2 ? std::optional<std::string>("softmax") : std::nullopt));
  CARAVAN_ASSIGN_OR_RETURN(
      router.norm_topk_prob,
      fields.Bool("norm_topk_prob", is_v2 ? std::optional<bool>(false) : std::nullopt));
  if (scoring == "sigmoid") {
    router.scoring_func = ScoringFunc::kSigmoid;
  } else if (scoring == "softmax") {
    router.scoring_func = ScoringFunc::kSoftmax;
  } else {
    return Unsupported(fields, "scoring_func", scoring, "sigmoid and softmax");
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::string method, fields.String("topk_method"));
  if (method == "greedy") {
    router.topk_method = TopkMethod::kGreedy;
  } else if (method == "group_limited_greedy") {
    router.topk_method = TopkMethod::kGroupLimitedGreedy;
  } else if (method == "noaux_tc") {
    router.topk_method = TopkMethod::kNoauxTc;
  } else {
    return Unsupported(fields, "topk_method", method, "greedy, group_limited_greedy and noaux_tc");
  }
  CARAVAN_ASSIGN_OR_RETURN(const double scaling, fields.Number("routed_scaling_factor", 0, 1e6));
  router.routed_scaling_factor = static_cast<float>(scaling);

  CARAVAN_ASSIGN_OR_RETURN(router.num_experts_per_tok,
                           fields.Int("num_experts_per_tok", 1, config.n_routed_experts));
  if (router.topk_method == TopkMethod::kGreedy) return absl::OkStatus();  // It knows no groups.
  CARAVAN_ASSIGN_OR_RETURN(router.n_group, fields.Int("n_group", 1, config.n_routed_experts));
  if (config.n_routed_experts % router.n_group != 0) {
    return fields.Error(
        "n_group", absl::StrCat("must divide n_routed_experts (", config.n_routed_experts, ")"));
  }
  CARAVAN_ASSIGN_OR_RETURN(router.topk_group, fields.Int("topk_group", 1, router.n_group));
  const int64_t group_size = config.n_routed_experts / router.n_group;
  if (router.topk_method == TopkMethod::kNoauxTc && group_size < 2) {
    return fields.Error("n_group",
                        "leaves fewer than the 2 experts a group that noaux_tc ranks by");
  }
  if (router.num_experts_per_tok > router.topk_group * group_size) {
    return fields.Error("num_experts_per_tok",
                        absl::StrCat("must be at most ", router.topk_group * group_size,
                                     ", which is what topk_group groups hold"));
  }
  return absl::OkStatus();
}

absl::Status ParseYarn(const JsonFields& fields, ModelConfig& config) {
  for (const char* name : {"truncate", "attention_factor"}) {
    if (fields.Has(name)) return fields.Error(name, "is not supported");
  }
  YarnScaling yarn;
  CARAVAN_ASSIGN_OR_RETURN(yarn.factor, fields.Number("factor", 1, 1e6));
  CARAVAN_ASSIGN_OR_RETURN(yarn.original_max_position_embeddings,
                           fields.Int("original_max_position_embeddings", 1, kMaxPositions));
  CARAVAN_ASSIGN_OR_RETURN(yarn.beta_slow, fields.Number("beta_slow", 1e-3, 1e6, yarn.beta_slow));
  CARAVAN_ASSIGN_OR_RETURN(yarn.beta_fast, fields.Number("beta_fast", 1e-3, 1e6, yarn.beta_fast));
  if (yarn.beta_fast < yarn.beta_slow)
    return fields.Error("beta_fast", "must be at least beta_slow");
  CARAVAN_ASSIGN_OR_RETURN(yarn.mscale, fields.Number("mscale", 0, 100, yarn.mscale));
  CARAVAN_ASSIGN_OR_RETURN(yarn.mscale_all_dim,
                           fields.Number("mscale_all_dim", 0, 100, yarn.mscale_all_dim));
  config.yarn = yarn;
  return absl::OkStatus();
}

absl::Status ParseRope(const JsonFields& fields, ModelConfig& config) {
  // Transformers 5 writes rope_parameters, with rope_theta inside, for what was rope_scaling.
  const bool renamed = fields.Has("rope_parameters");
  if (renamed && fields.Has("rope_scaling")) {
    return fields.Error("rope_parameters", "must not stand beside rope_scaling");
  }
  const char* const name = renamed ? "rope_parameters" : "rope_scaling";
  std::optional<JsonFields> scaling;
  if (fields.Has(name)) {
    CARAVAN_ASSIGN_OR_RETURN(scaling, fields.Object(name));
  }
  const bool theta_is_inside = renamed && scaling->Has("rope_theta");
  CARAVAN_ASSIGN_OR_RETURN(config.rope_theta,
                           (theta_is_inside ? *scaling : fields).Number("rope_theta", 2, 1e12));
  if (!scaling.has_value()) return absl::OkStatus();
  const char* const type_name = scaling->Has("rope_type") ? "rope_type" : "type";
  CARAVAN_ASSIGN_OR_RETURN(const std::string type, scaling->String(type_name));
  if (type == "default") return absl::OkStatus();
  if (type != "yarn") return Unsupported(*scaling, type_name, type, "yarn and default");
  return ParseYarn(*scaling, config);
}

absl::Status ParseSpecialTokens(const json& object, const JsonFields& fields, ModelConfig& config) {
  CARAVAN_ASSIGN_OR_RETURN(config.bos_token_id,
                           fields.Int("bos_token_id", 0, config.vocab_size - 1));
  if (!fields.Has("eos_token_id")) return fields.Error("eos_token_id", "is missing");
  const json& eos = object["eos_token_id"];
  const json ids = eos.is_array() ? eos : json::array({eos});
  for (const json& id : ids) {
    if (!id.is_number_unsigned() ||
        id.get<uint64_t>() >= static_cast<uint64_t>(config.vocab_size)) {
      return fields.Error("eos_token_id", absl::StrCat("must be a token id below vocab_size (",
                                                       config.vocab_size, ") or a list of them"));
    }
    config.eos_token_ids.push_back(id.get<int32_t>());
  }
  if (config.eos_token_ids.empty()) return fields.Error("eos_token_id", "must not be empty");
  return absl::OkStatus();
}

/// YaRN, section 3.4, as DeepSeek parameterises it: what attention's temperature asks of queries
/// and keys.
double YarnMscale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json_text,
                                             absl::string_view origin) {
  CARAVAN_ASSIGN_OR_RETURN(const json object, ParseJson(json_text, origin));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(object, origin));
  ModelConfig config;
  CARAVAN_ASSIGN_OR_RETURN(config.model_type, fields.String("model_type"));
  if (config.model_type != "deepseek_v2" && config.model_type != "deepseek_v3" &&
      config.model_type != "kimi_k2") {
    return Unsupported(fields, "model_type", config.model_type,
                       "deepseek_v2, deepseek_v3 and kimi_k2");
  }
  CARAVAN_RETURN_IF_ERROR(ParseSizes(object, fields, config));
  CARAVAN_RETURN_IF_ERROR(RefuseOtherArithmetic(fields, config));
  CARAVAN_RETURN_IF_ERROR(ParseExperts(object, fields, config));
  CARAVAN_RETURN_IF_ERROR(ParseRope(fields, config));
  CARAVAN_RETURN_IF_ERROR(ParseSpecialTokens(object, fields, config));
  return config;
}

bool ModelConfig::IsMoeLayer(int layer) const {
  return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
}

MlaShape ModelConfig::Mla() const {
  MlaShape shape;
  shape.num_heads = num_attention_heads;
  shape.qk_nope_head_dim = qk_nope_head_dim;
  shape.qk_rope_head_dim = qk_rope_head_dim;
  shape.v_head_dim = v_head_dim;
  shape.kv_lora_rank = kv_lora_rank;
  double scale = 1 / std::sqrt(static_cast<double>(shape.q_head_dim()));
  // At short contexts too; once for the queries and once for the keys.
  if (yarn.has_value()) scale *= std::pow(YarnMscale(yarn->factor, yarn->mscale_all_dim), 2);
  shape.softmax_scale = static_cast<float>(scale);
  return shape;
}

RotaryEmbedding MakeRotaryEmbedding(const ModelConfig& config) {
  const int64_t dim = config.qk_rope_head_dim;
  RotaryEmbedding rotary;
  rotary.inv_freq.resize(static_cast<size_t>(dim / 2));
  double low = 0;   // pairs up to here keep their frequency,
  double high = 0;  // pairs from here on turn `factor` times slower; a ramp between
  if (config.yarn.has_value()) {
    const YarnScaling& yarn = *config.yarn;
    // The pair that turns `rotations` times within the original context (YaRN, section 3.2).
    const auto pair_of = [&](double rotations) {
      const double context = static_cast<double>(yarn.original_max_position_embeddings);
      return static_cast<double>(dim) * std::log(context / (rotations * 2 * std::numbers::pi)) /
             (2 * std::log(config.rope_theta));
    };
    low = std::max(std::floor(pair_of(yarn.beta_fast)), 0.0);
    high = std::min(std::ceil(pair_of(yarn.beta_slow)), static_cast<double>(dim - 1));
    rotary.amplitude = static_cast<float>(YarnMscale(yarn.factor, yarn.mscale) /
                                          YarnMscale(yarn.factor, yarn.mscale_all_dim));
  }
  for (int64_t i = 0; i < dim / 2; ++i) {
    const double pair = static_cast<double>(i);
    double inv_freq = std::pow(config.rope_theta, -2 * pair / static_cast<double>(dim));
    if (config.yarn.has_value()) {
      // 0.001 keeps a ramp of no width finite.
      const double ramp = std::clamp((pair - low) / std::max(high - low, 0.001), 0.0, 1.0);
      inv_freq *= ramp / config.yarn->factor + (1 - ramp);
    }
    rotary.inv_freq[static_cast<size_t>(i)] = static_cast<float>(inv_freq);
  }
  return rotary;
}

}  // namespace caravan
