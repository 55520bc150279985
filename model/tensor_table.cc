#include "model/tensor_table.h"

#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/int_math.h"
#include "base/status_macros.h"
#include "kernels/matrix.h"

namespace caravan {
namespace {

constexpr char kEmbeddingName[] = "model.embed_tokens.weight";

/// Collects specs whose names begin with one prefix.
class SpecList {
 public:
  explicit SpecList(std::string prefix) : prefix_(std::move(prefix)) {}

  void Add(absl::string_view name, std::vector<int64_t> shape, TensorClass tensor_class) {
    specs_.push_back({absl::StrCat(prefix_, name), std::move(shape), tensor_class});
  }

  /// A gated feed-forward network.
  void AddFfn(absl::string_view name, int64_t hidden, int64_t inter, TensorClass tensor_class) {
    Add(absl::StrCat(name, ".gate_proj.weight"), {inter, hidden}, tensor_class);
    Add(absl::StrCat(name, ".up_proj.weight"), {inter, hidden}, tensor_class);
    Add(absl::StrCat(name, ".down_proj.weight"), {hidden, inter}, tensor_class);
  }

  std::vector<TensorSpec> Take() { return std::move(specs_); }

 private:
  const std::string prefix_;
  std::vector<TensorSpec> specs_;
};

void AddAttention(const ModelConfig& c, SpecList& list) {
  const MlaShape mla = c.Mla();
  const int64_t q_rows = mla.num_heads * mla.q_head_dim();
  if (c.q_lora_rank == 0) {
    list.Add("self_attn.q_proj.weight", {q_rows, c.hidden_size}, TensorClass::kAttention);
  } else {
    list.Add("self_attn.q_a_proj.weight", {c.q_lora_rank, c.hidden_size}, TensorClass::kAttention);
    list.Add("self_attn.q_a_layernorm.weight", {c.q_lora_rank}, TensorClass::kNorm);
    list.Add("self_attn.q_b_proj.weight", {q_rows, c.q_lora_rank}, TensorClass::kAttention);
  }
  list.Add("self_attn.kv_a_proj_with_mqa.weight", {mla.kv_width(), c.hidden_size},
           TensorClass::kAttention);
  list.Add("self_attn.kv_a_layernorm.weight", {c.kv_lora_rank}, TensorClass::kNorm);
  list.Add("self_attn.kv_b_proj.weight",
           {mla.num_heads * (mla.qk_nope_head_dim + mla.v_head_dim), c.kv_lora_rank},
           TensorClass::kAttention);
  list.Add("self_attn.o_proj.weight", {c.hidden_size, mla.num_heads * mla.v_head_dim},
           TensorClass::kAttention);
}

/// A transformer layer's own tensors.
void AddLayer(const ModelConfig& config, int layer, SpecList& list) {
  const int64_t hidden = config.hidden_size;
  list.Add("input_layernorm.weight", {hidden}, TensorClass::kNorm);
  AddAttention(config, list);
  list.Add("post_attention_layernorm.weight", {hidden}, TensorClass::kNorm);
  if (!config.IsMoeLayer(layer)) {
    list.AddFfn("mlp", hidden, config.intermediate_size, TensorClass::kDenseFfn);
    return;
  }
  list.Add("mlp.gate.weight", {config.n_routed_experts, hidden}, TensorClass::kRouter);
  if (config.router.topk_method == TopkMethod::kNoauxTc) {
    list.Add("mlp.gate.e_score_correction_bias", {config.n_routed_experts}, TensorClass::kNorm);
  }
  if (config.n_shared_experts > 0) {
    list.AddFfn("mlp.shared_experts", hidden,
                config.moe_intermediate_size * config.n_shared_experts, TensorClass::kSharedExpert);
  }
  for (int64_t expert = 0; expert < config.n_routed_experts; ++expert) {
    list.AddFfn(absl::StrCat("mlp.experts.", expert), hidden, config.moe_intermediate_size,
                TensorClass::kRoutedExpert);
  }
}

absl::Status Wrong(absl::string_view name, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": ", what));
}

absl::StatusOr<const TensorInfo*> FindInShape(const TensorSource& source, absl::string_view name,
                                              const std::vector<int64_t>& shape) {
  const TensorInfo* const info = source.Find(name);
  if (info == nullptr) return Wrong(name, "is missing");
  if (info->shape != shape) {
    return Wrong(name, absl::StrCat("has shape ", ShapeText(info->shape),
                                    ", but the config asks for ", ShapeText(shape)));
  }
  return info;
}

/// Bytes of one tensor in a stage's memory, its scales included.
absl::StatusOr<int64_t> CheckTensor(const TensorSource& source, const TensorSpec& spec) {
  CARAVAN_ASSIGN_OR_RETURN(const TensorInfo* const info,
                           FindInShape(source, spec.name, spec.shape));
  const std::string scale_name = ScaleName(spec.name);
  const bool is_matrix = spec.shape.size() == 2;
  const bool is_fp8 = info->dtype == DType::kF8E4M3;
  const bool of_matrices = is_fp8 || BlockOf(info->dtype).values != 1;
  if (info->dtype == DType::kI32 || (of_matrices && !is_matrix)) {
    return Wrong(spec.name, absl::StrCat("has dtype ", DTypeName(info->dtype), ", but must be ",
                                         is_matrix ? "a float or one of GGUF's block formats"
                                                   : "F32, F16 or BF16"));
  }
  const int64_t bytes = RoundUp(LoadedInfo(spec, *info).num_bytes(), kMatrixAlignment);
  if (!is_fp8) {
    if (source.Find(scale_name) != nullptr) {
      return Wrong(scale_name, absl::StrCat("goes with an F8_E4M3 matrix, but ", spec.name,
                                            " has dtype ", DTypeName(info->dtype)));
    }
    return bytes;
  }
  CARAVAN_ASSIGN_OR_RETURN(const TensorInfo* const scale,
                           FindInShape(source, scale_name, ScaleInfo(spec).shape));
  if (scale->dtype != DType::kF32) {
    return Wrong(scale_name,
                 absl::StrCat("has dtype ", DTypeName(scale->dtype), ", but must be F32"));
  }
  return bytes + RoundUp(scale->num_bytes(), kMatrixAlignment);
}

}  // namespace

std::vector<TensorSpec> LayerTensors(const ModelConfig& config, int layer) {
  CARAVAN_CHECK(layer >= 0 && layer < config.num_hidden_layers);
  SpecList list(absl::StrCat("model.layers.", layer, "."));
  AddLayer(config, layer, list);
  return list.Take();
}

std::vector<TensorSpec> MtpTensors(const ModelConfig& config) {
  CARAVAN_CHECK(config.num_nextn_predict_layers > 0);
  const int64_t hidden = config.hidden_size;
  const int layer = config.num_hidden_layers;
  SpecList list(absl::StrCat("model.layers.", layer, "."));
  list.Add("enorm.weight", {hidden}, TensorClass::kNorm);
  list.Add("hnorm.weight", {hidden}, TensorClass::kNorm);
  list.Add("eh_proj.weight", {hidden, 2 * hidden}, TensorClass::kMtpProjection);
  AddLayer(config, layer, list);
  list.Add("shared_head.norm.weight", {hidden}, TensorClass::kNorm);
  return list.Take();
}

std::vector<TensorSpec> EmbeddingTensors(const ModelConfig& config) {
  return {{kEmbeddingName, {config.vocab_size, config.hidden_size}, TensorClass::kEmbedding}};
}

std::vector<TensorSpec> HeadTensors(const ModelConfig& config) {
  TensorSpec projection = {
      "lm_head.weight", {config.vocab_size, config.hidden_size}, TensorClass::kHead};
  // As in a stage that looks tokens up in it: a model's results do not depend on its split.
  if (config.tie_word_embeddings) projection = EmbeddingTensors(config)[0];
  return {{"model.norm.weight", {config.hidden_size}, TensorClass::kNorm}, std::move(projection)};
}

std::vector<TensorSpec> StageTensors(const ModelConfig& config, const StageSpec& stage) {
  std::vector<TensorSpec> all;
  const auto append = [&](std::vector<TensorSpec> specs) {
    all.insert(all.end(), std::make_move_iterator(specs.begin()),
               std::make_move_iterator(specs.end()));
  };
  if (stage.embeds || stage.drafts) append(EmbeddingTensors(config));
  for (int layer = stage.first_layer; layer < stage.end_layer; ++layer) {
    append(LayerTensors(config, layer));
  }
  if (stage.drafts) append(MtpTensors(config));
  if (stage.has_head) append(HeadTensors(config));
  // Tied, the projection is the embedding, which is listed already.
  if ((stage.embeds || stage.drafts) && stage.has_head && config.tie_word_embeddings) {
    all.pop_back();
  }
  return all;
}

bool IsKvB(const TensorSpec& spec) { return absl::EndsWith(spec.name, ".kv_b_proj.weight"); }

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

std::string ScaleName(absl::string_view weight_name) {
  return absl::StrCat(weight_name, "_scale_inv");
}

TensorInfo ScaleInfo(const TensorSpec& matrix) {
  return {DType::kF32,
          {Fp8Blocks(matrix.shape[0]), Fp8Blocks(matrix.shape[1])},
          MatrixLayout::kRowMajor};
}

TensorInfo LoadedInfo(const TensorSpec& spec, const TensorInfo& stored) {
  TensorInfo info = stored;
  if (spec.tensor_class == TensorClass::kNorm) {
    info.dtype = DType::kF32;
    return info;
  }
  const bool by_rows = spec.tensor_class == TensorClass::kEmbedding || IsKvB(spec);
  if (!by_rows) info.layout = MatrixLayout::kTiled16;
  return info;
}

absl::StatusOr<int64_t> CheckTensors(const TensorSource& source,
                                     const std::vector<TensorSpec>& specs) {
  int64_t bytes = 0;
  for (const TensorSpec& spec : specs) {
    CARAVAN_ASSIGN_OR_RETURN(const int64_t tensor_bytes, CheckTensor(source, spec));
    bytes += tensor_bytes;
  }
  return bytes;
}

}  // namespace caravan
