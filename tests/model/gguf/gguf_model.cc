#include "tests/model/gguf/gguf_model.h"

#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "absl/types/span.h"
#include "base/check.h"
#include "kernels/matrix.h"
#include "model/tensor_table.h"

namespace caravan {
namespace {

using nlohmann::json;

std::string ReadBytes(const TensorSource& source, const std::string& name) {
  const TensorInfo* const info = source.Find(name);
  CARAVAN_CHECK(info != nullptr);
  std::string bytes(static_cast<size_t>(info->num_bytes()), '\0');
  CARAVAN_CHECK(
      source.Read(name, absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), bytes.size()))
          .ok());
  return bytes;
}

template <typename T>
T LoadAt(const std::string& bytes, int64_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

RawTensor Dequantize(const TensorSource& source, const TensorSpec& spec) {
  const TensorInfo& info = *source.Find(spec.name);
  const std::string bytes = ReadBytes(source, spec.name);
  const bool is_fp8 = info.dtype == DType::kF8E4M3;
  const std::string scales = is_fp8 ? ReadBytes(source, ScaleName(spec.name)) : std::string();
  const int64_t cols = info.shape.back();
  RawTensor tensor{info.shape.size() == 1 ? DType::kF32 : DType::kBF16, info.shape, {}};
  for (int64_t i = 0; i < info.num_elements(); ++i) {
    float value = 0;
    if (is_fp8) {
      const int64_t block = i / cols / kFp8BlockSize * Fp8Blocks(cols) + i % cols / kFp8BlockSize;
      value = Float8E4M3ToFloat(LoadAt<uint8_t>(bytes, i)) * LoadAt<float>(scales, block);
    } else if (info.dtype == DType::kBF16) {
      value = BFloat16ToFloat(LoadAt<uint16_t>(bytes, i));
    } else {
      CARAVAN_CHECK(info.dtype == DType::kF32);
      value = LoadAt<float>(bytes, i);
    }
    if (tensor.dtype == DType::kF32) {
      AppendLittleEndian(value, tensor.bytes);
    } else {
      AppendLittleEndian(FloatToBFloat16(value), tensor.bytes);
    }
  }
  return tensor;
}

std::vector<TensorSpec> AllSpecs(const ModelConfig& config, bool with_mtp) {
  std::vector<TensorSpec> all = EmbeddingTensors(config);
  const auto append = [&](const std::vector<TensorSpec>& specs) {
    all.insert(all.end(), specs.begin(), specs.end());
  };
  if (!config.tie_word_embeddings) {
    append(HeadTensors(config));
  } else {
    append({HeadTensors(config)[0]});
  }
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    append(LayerTensors(config, layer));
  }
  if (with_mtp && config.num_nextn_predict_layers > 0) append(MtpTensors(config));
  return all;
}

/// Behind "model.layers.L.", but for the experts, which are renamed when they are stacked.
const std::pair<absl::string_view, absl::string_view> kRenames[] = {
    {"input_layernorm", "attn_norm"},
    {"post_attention_layernorm", "ffn_norm"},
    {"self_attn.q_a_proj", "attn_q_a"},
    {"self_attn.q_a_layernorm", "attn_q_a_norm"},
    {"self_attn.q_b_proj", "attn_q_b"},
    {"self_attn.q_proj", "attn_q"},
    {"self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"},
    {"self_attn.kv_a_layernorm", "attn_kv_a_norm"},
    {"self_attn.kv_b_proj", "attn_kv_b"},
    {"self_attn.k_b_proj", "attn_k_b"},
    {"self_attn.v_b_proj", "attn_v_b"},
    {"self_attn.o_proj", "attn_output"},
    {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
    {"mlp.gate.e_score_correction_bias", "exp_probs_b.bias"},
    {"mlp.gate.weight", "ffn_gate_inp.weight"},
    {"mlp.shared_experts.gate_proj", "ffn_gate_shexp"},
    {"mlp.shared_experts.up_proj", "ffn_up_shexp"},
    {"mlp.shared_experts.down_proj", "ffn_down_shexp"},
    {"mlp.experts.gate_proj", "ffn_gate_exps"},
    {"mlp.experts.up_proj", "ffn_up_exps"},
    {"mlp.experts.down_proj", "ffn_down_exps"},
    {"enorm", "nextn.enorm"},
    {"hnorm", "nextn.hnorm"},
    {"eh_proj", "nextn.eh_proj"},
    {"shared_head.norm", "nextn.shared_head_norm"},
};

std::string GgufName(absl::string_view name) {
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  if (name == "lm_head.weight") return "output.weight";
  CARAVAN_CHECK(absl::ConsumePrefix(&name, "model.layers."));
  const size_t dot = name.find('.');
  const absl::string_view layer = name.substr(0, dot);
  absl::string_view rest = name.substr(dot + 1);
  for (const auto& [from, to] : kRenames) {
    if (absl::ConsumePrefix(&rest, from)) return absl::StrCat("blk.", layer, ".", to, rest);
  }
  CARAVAN_CHECK(false);
  return {};
}

/// "model.layers.3.mlp.experts.17.up_proj.weight" without its 17. -1: no routed expert's.
int ExpertOf(const std::string& name, std::string& without) {
  const std::string kMarker = ".mlp.experts.";
  const size_t at = name.find(kMarker);
  if (at == std::string::npos) return -1;
  const size_t begin = at + kMarker.size();
  const size_t end = name.find('.', begin);
  without = name.substr(0, begin) + name.substr(end + 1);
  int expert = -1;
  CARAVAN_CHECK(absl::SimpleAtoi(name.substr(begin, end - begin), &expert));
  return expert;
}

}  // namespace

RawTensors DequantizedTensors(const TensorSource& source, const ModelConfig& config,
                              bool with_mtp) {
  RawTensors tensors;
  for (const TensorSpec& spec : AllSpecs(config, with_mtp)) {
    tensors[spec.name] = Dequantize(source, spec);
  }
  return tensors;
}

RawTensors RandomTensors(const ModelConfig& config,
                         const std::function<DType(const std::string&)>& dtype_of, uint64_t seed) {
  std::mt19937_64 random(seed);
  RawTensors tensors;
  for (const TensorSpec& spec : AllSpecs(config, true)) {
    const TensorInfo info{spec.shape.size() == 1 ? DType::kF32 : dtype_of(spec.name), spec.shape};
    std::string bytes(static_cast<size_t>(info.num_bytes()), '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    tensors[spec.name] = {info.dtype, info.shape, std::move(bytes)};
  }
  return tensors;
}

RawTensors SplitKvB(const RawTensors& tensors, const ModelConfig& config) {
  const int64_t heads = config.num_attention_heads;
  const int64_t nope = config.qk_nope_head_dim;
  const int64_t v_dim = config.v_head_dim;
  const int64_t latent = config.kv_lora_rank;
  RawTensors split;
  for (const auto& [name, tensor] : tensors) {
    if (!absl::StrContains(name, "kv_b_proj")) {
      split[name] = tensor;
      continue;
    }
    CARAVAN_CHECK(tensor.dtype == DType::kBF16);
    RawTensor k_b{DType::kBF16, {heads * latent, nope}, {}};
    RawTensor v_b{DType::kBF16, {heads * v_dim, latent}, {}};
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t first_row = head * (nope + v_dim);
      for (int64_t c = 0; c < latent; ++c) {
        for (int64_t r = 0; r < nope; ++r) {
          AppendLittleEndian(LoadAt<uint16_t>(tensor.bytes, (first_row + r) * latent + c),
                             k_b.bytes);
        }
      }
      for (int64_t r = 0; r < v_dim; ++r) {
        for (int64_t c = 0; c < latent; ++c) {
          AppendLittleEndian(LoadAt<uint16_t>(tensor.bytes, (first_row + nope + r) * latent + c),
                             v_b.bytes);
        }
      }
    }
    split[absl::StrReplaceAll(name, {{"kv_b_proj", "k_b_proj"}})] = std::move(k_b);
    split[absl::StrReplaceAll(name, {{"kv_b_proj", "v_b_proj"}})] = std::move(v_b);
  }
  return split;
}

void AddGgufConfig(const json& config, GgufAge age, bool with_mtp, GgufWriter& writer) {
  const auto key = [](absl::string_view name) { return absl::StrCat("deepseek2.", name); };
  const auto set_int = [&](absl::string_view name, const json& value) {
    writer.Set(key(name), value.get<uint32_t>());
  };
  const auto set_float = [&](absl::string_view name, const json& value) {
    writer.Set(key(name), value.get<float>());
  };
  const bool is_new = age == GgufAge::kNew;
  const int nextn = with_mtp ? config.value("num_nextn_predict_layers", 0) : 0;
  const int rope = config["qk_rope_head_dim"];
  const int key_length = config["qk_nope_head_dim"].get<int>() + rope;
  const int latent = config["kv_lora_rank"];

  writer.SetString("general.architecture", "deepseek2");
  writer.SetString("general.name", "a test's model");
  set_int("block_count", config["num_hidden_layers"].get<int>() + nextn);
  if (nextn > 0) set_int("nextn_predict_layers", nextn);
  set_int("context_length", config["max_position_embeddings"]);
  set_int("embedding_length", config["hidden_size"]);
  set_int("feed_forward_length", config["intermediate_size"]);
  set_int("vocab_size", config["vocab_size"]);
  set_int("attention.head_count", config["num_attention_heads"]);
  set_int("attention.head_count_kv", is_new ? json(1) : config["num_attention_heads"]);
  set_float("attention.layer_norm_rms_epsilon", config["rms_norm_eps"]);
  if (!config["q_lora_rank"].is_null()) set_int("attention.q_lora_rank", config["q_lora_rank"]);
  set_int("attention.kv_lora_rank", latent);
  set_int("attention.key_length", is_new ? latent + rope : key_length);
  set_int("attention.value_length", is_new ? json(latent) : config["v_head_dim"]);
  if (is_new) {
    set_int("attention.key_length_mla", key_length);
    set_int("attention.value_length_mla", config["v_head_dim"]);
  }
  set_int("leading_dense_block_count", config["first_k_dense_replace"]);
  set_int("expert_count", config["n_routed_experts"]);
  set_int("expert_used_count", config["num_experts_per_tok"]);
  set_int("expert_shared_count", config["n_shared_experts"]);
  set_int("expert_feed_forward_length", config["moe_intermediate_size"]);
  set_float("expert_weights_scale", config["routed_scaling_factor"]);
  if (config["norm_topk_prob"]) writer.Set(key("expert_weights_norm"), true);
  const bool is_sigmoid = config["scoring_func"] == "sigmoid";
  if (is_new || is_sigmoid) set_int("expert_gating_func", is_sigmoid ? 2 : 1);
  if (is_new) {
    set_int("expert_group_count", config["n_group"]);
    set_int("expert_group_used_count", config["topk_group"]);
  }
  set_int("rope.dimension_count", rope);
  set_float("rope.freq_base", config["rope_theta"]);
  const json& yarn = config["rope_scaling"];
  writer.SetString(key("rope.scaling.type"), "yarn");
  set_float("rope.scaling.factor", yarn["factor"]);
  set_int("rope.scaling.original_context_length", yarn["original_max_position_embeddings"]);
  if (is_new) {
    set_float("rope.scaling.yarn_beta_fast", yarn["beta_fast"]);
    set_float("rope.scaling.yarn_beta_slow", yarn["beta_slow"]);
  }
  set_float("rope.scaling.yarn_log_multiplier", 0.1 * yarn["mscale_all_dim"].get<double>());
  writer.Set("tokenizer.ggml.bos_token_id", config["bos_token_id"].get<uint32_t>());
  const json& eos = config["eos_token_id"];
  writer.Set("tokenizer.ggml.eos_token_id", (eos.is_array() ? eos[0] : eos).get<uint32_t>());
  if (eos.is_array()) writer.Set("tokenizer.ggml.eot_token_id", eos[1].get<uint32_t>());
}

void AddGgufTokenizer(const json& tokenizer, int64_t vocab_size, absl::string_view pre,
                      GgufWriter& writer) {
  std::vector<std::string> tokens;
  std::vector<int32_t> types(static_cast<size_t>(vocab_size), 5);  // unused
  for (int64_t id = 0; id < vocab_size; ++id) tokens.push_back(absl::StrCat("[PAD", id, "]"));
  for (const auto& [spelling, id] : tokenizer["model"]["vocab"].items()) {
    tokens[id.get<size_t>()] = spelling;
    types[id.get<size_t>()] = 1;  // normal
  }
  for (const json& token : tokenizer["added_tokens"]) {
    const auto content = token["content"].get<std::string>();
    const size_t id = token["id"];
    const bool is_control =
        token["special"] || (absl::StartsWith(content, "<｜") && absl::EndsWith(content, "｜>"));
    tokens[id] = content;
    types[id] = is_control ? 3 : 4;  // else the user's
  }
  std::vector<std::string> merges;
  for (const json& merge : tokenizer["model"]["merges"]) {
    merges.push_back(merge.is_string() ? merge.get<std::string>()
                                       : absl::StrCat(merge[0].get<std::string>(), " ",
                                                      merge[1].get<std::string>()));
  }
  writer.SetString("tokenizer.ggml.model", "gpt2");
  writer.SetString("tokenizer.ggml.pre", pre);
  writer.SetStrings("tokenizer.ggml.tokens", tokens);
  writer.SetArray("tokenizer.ggml.token_type", types);
  writer.SetStrings("tokenizer.ggml.merges", merges);
}

RawTensors GgufTensors(const RawTensors& tensors, int64_t num_heads) {
  RawTensors gguf;
  std::map<std::string, std::map<int, const RawTensor*>> stacks;
  for (const auto& [name, tensor] : tensors) {
    std::string stack;
    if (const int expert = ExpertOf(name, stack); expert >= 0) {
      stacks[stack][expert] = &tensor;
      continue;
    }
    RawTensor& renamed = gguf[GgufName(name)] = tensor;
    if (absl::StrContains(name, "self_attn.k_b_proj") ||
        absl::StrContains(name, "self_attn.v_b_proj")) {
      renamed.shape = {num_heads, tensor.shape[0] / num_heads, tensor.shape[1]};
    }
  }
  for (const auto& [name, experts] : stacks) {
    const RawTensor& first = *experts.begin()->second;
    RawTensor& stack = gguf[GgufName(name)] = {
        first.dtype, {static_cast<int64_t>(experts.size()), first.shape[0], first.shape[1]}, {}};
    for (const auto& [expert, tensor] : experts) stack.bytes += tensor->bytes;
  }
  return gguf;
}

void AddGgufTensor(const std::string& name, const RawTensor& tensor, GgufWriter& writer) {
  writer.AddTensor(name, tensor.shape, GgufTypeCode(tensor.dtype), tensor.bytes);
}

uint32_t GgufTypeCode(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ8_0:
      return 8;
    case DType::kQ2_K:
      return 10;
    case DType::kQ3_K:
      return 11;
    case DType::kQ4_K:
      return 12;
    case DType::kQ5_K:
      return 13;
    case DType::kQ6_K:
      return 14;
    case DType::kBF16:
      return 30;
    case DType::kF8E4M3:
    case DType::kI32:
      break;
  }
  CARAVAN_CHECK(false);
  return 0;
}

}  // namespace caravan
