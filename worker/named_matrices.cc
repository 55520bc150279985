#include "worker/named_matrices.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace caravan {
namespace {

class MatrixList {
 public:
  /// Leaves out what the model has not.
  void Add(absl::string_view prefix, absl::string_view name, const Matrix& matrix) {
    if (matrix.rows > 0) matrices_.emplace_back(absl::StrCat(prefix, name, ".weight"), matrix);
  }

  void AddFfn(absl::string_view prefix, const FfnWeights& ffn) {
    Add(prefix, "gate_proj", ffn.gate);
    Add(prefix, "up_proj", ffn.up);
    Add(prefix, "down_proj", ffn.down);
  }

  void AddLayer(const ModelConfig& config, int layer, const LayerWeights& weights) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const std::string attention = absl::StrCat(prefix, "self_attn.");
    Add(attention, "q_proj", weights.q_proj);
    Add(attention, "q_a_proj", weights.q_a_proj);
    Add(attention, "q_b_proj", weights.q_b_proj);
    Add(attention, "kv_a_proj_with_mqa", weights.kv_a_proj_with_mqa);
    Add(attention, "kv_b_proj", weights.kv_b_proj);
    Add(attention, "o_proj", weights.o_proj);
    const bool is_moe = config.IsMoeLayer(layer);
    AddFfn(absl::StrCat(prefix, is_moe ? "mlp.shared_experts." : "mlp."), weights.dense);
    Add(prefix, "mlp.gate", weights.router);
    for (size_t expert = 0; expert < weights.experts.size(); ++expert) {
      AddFfn(absl::StrCat(prefix, "mlp.experts.", expert, "."), weights.experts[expert]);
    }
  }

  std::vector<std::pair<std::string, Matrix>> Take() { return std::move(matrices_); }

 private:
  std::vector<std::pair<std::string, Matrix>> matrices_;
};

}  // namespace

std::vector<std::pair<std::string, Matrix>> NamedMatrices(const ModelConfig& config,
                                                          const StageSpec& stage,
                                                          const StageWeights& weights) {
  MatrixList list;
  list.Add("model.", "embed_tokens", weights.embedding);
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    list.AddLayer(config, stage.first_layer + static_cast<int>(i), weights.layers[i]);
  }
  if (weights.mtp.has_value()) {
    const int layer = config.num_hidden_layers;
    list.Add(absl::StrCat("model.layers.", layer, "."), "eh_proj", weights.mtp->eh_proj);
    list.AddLayer(config, layer, weights.mtp->layer);
  }
  // Tied, it is the embedding.
  if (weights.lm_head.data != weights.embedding.data) list.Add("", "lm_head", weights.lm_head);
  return list.Take();
}

}  // namespace caravan
