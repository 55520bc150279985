#include "worker/stage_weights.h"

#include <string>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/tensor_table.h"

namespace caravan {
namespace {

FfnWeights FfnOf(const WeightPart& part, const std::string& prefix) {
  return FfnWeights{part.MatrixOf(prefix + "gate_proj.weight"),
                    part.MatrixOf(prefix + "up_proj.weight"),
                    part.MatrixOf(prefix + "down_proj.weight")};
}

LayerWeights MakeLayer(const ModelConfig& config, int layer, const WeightPart& part) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const std::string attention = prefix + "self_attn.";
  LayerWeights weights;
  weights.layer = layer;
  weights.input_layernorm = part.VectorOf(prefix + "input_layernorm.weight");
  weights.q_proj = part.MatrixOf(attention + "q_proj.weight");
  weights.q_a_proj = part.MatrixOf(attention + "q_a_proj.weight");
  weights.q_a_layernorm = part.VectorOf(attention + "q_a_layernorm.weight");
  weights.q_b_proj = part.MatrixOf(attention + "q_b_proj.weight");
  weights.kv_a_proj_with_mqa = part.MatrixOf(attention + "kv_a_proj_with_mqa.weight");
  weights.kv_a_layernorm = part.VectorOf(attention + "kv_a_layernorm.weight");
  weights.kv_b_proj = part.MatrixOf(attention + "kv_b_proj.weight");
  weights.o_proj = part.MatrixOf(attention + "o_proj.weight");
  weights.post_attention_layernorm = part.VectorOf(prefix + "post_attention_layernorm.weight");
  if (!config.IsMoeLayer(layer)) {
    weights.dense = FfnOf(part, prefix + "mlp.");
    return weights;
  }
  weights.dense = FfnOf(part, prefix + "mlp.shared_experts.");
  weights.router = part.MatrixOf(prefix + "mlp.gate.weight");
  weights.e_score_correction_bias = part.VectorOf(prefix + "mlp.gate.e_score_correction_bias");
  return weights;
}

void AddExperts(const ModelConfig& config, const WeightPart& part, LayerWeights& weights) {
  for (int64_t expert = 0; expert < config.n_routed_experts; ++expert) {
    weights.experts.push_back(
        FfnOf(part, absl::StrCat("model.layers.", weights.layer, ".mlp.experts.", expert, ".")));
  }
}

MtpWeights MakeMtp(const ModelConfig& config, const WeightPart& part) {
  const std::string prefix = absl::StrCat("model.layers.", config.num_hidden_layers, ".");
  MtpWeights weights;
  weights.enorm = part.VectorOf(prefix + "enorm.weight");
  weights.hnorm = part.VectorOf(prefix + "hnorm.weight");
  weights.eh_proj = part.MatrixOf(prefix + "eh_proj.weight");
  weights.layer = MakeLayer(config, config.num_hidden_layers, part);
  weights.head_norm = part.VectorOf(prefix + "shared_head.norm.weight");
  return weights;
}

}  // namespace

absl::StatusOr<std::unique_ptr<StageWeights>> StageWeights::Load(
    const ModelConfig& config, const StageSpec& stage, const TensorSource& source,
    const Progress& progress, Memory& memory, Experts experts, WeightParts* held) {
  using Kind = WeightPartId::Kind;
  CARAVAN_RETURN_IF_ERROR(CheckTensors(source, StageTensors(config, stage)).status());
  const std::vector<WeightPartId> ids = PartsOf(config, stage, experts == Experts::kLoad);
  WeightParts own;
  WeightParts& parts = held != nullptr && memory.is_host() ? *held : own;
  CARAVAN_RETURN_IF_ERROR(LoadWeightParts(config, ids, source, parts, memory, progress));

  auto weights = absl::WrapUnique(new StageWeights);
  weights->on_host_ = memory.is_host();
  const WeightPart* embedding = nullptr;
  for (const WeightPartId& id : ids) {
    const std::shared_ptr<const WeightPart>& part = parts.at(id);
    weights->parts_.emplace(id, part);
    weights->num_bytes_ += part->num_bytes();
    switch (id.kind) {
      case Kind::kEmbedding:
        embedding = part.get();
        weights->embedding = part->MatrixOf("model.embed_tokens.weight");
        break;
      case Kind::kLayer:
        weights->layers.push_back(MakeLayer(config, id.layer, *part));
        break;
      case Kind::kExperts:
        AddExperts(config, *part, weights->layers.back());
        break;
      case Kind::kMtp:
        weights->mtp = MakeMtp(config, *part);
        break;
      case Kind::kMtpExperts:
        AddExperts(config, *part, weights->mtp->layer);
        break;
      case Kind::kHead:
      case Kind::kFinalNorm: {
        const WeightPart& projection = id.kind == Kind::kHead ? *part : *embedding;
        weights->final_layernorm = part->VectorOf("model.norm.weight");
        weights->lm_head = projection.MatrixOf(
            config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
        break;
      }
    }
  }
  return weights;
}

}  // namespace caravan
