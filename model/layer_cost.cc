#include "model/layer_cost.h"

#include "base/status_macros.h"
#include "model/tensor_table.h"

namespace caravan {
namespace {

/// A multiplication and an addition for each weight of the matrices.
int64_t MatrixFlops(const std::vector<TensorSpec>& specs) {
  int64_t flops = 0;
  for (const TensorSpec& spec : specs) {
    if (spec.shape.size() == 2) flops += 2 * spec.shape[0] * spec.shape[1];
  }
  return flops;
}

/// All of `specs` read and multiplied for every token.
absl::StatusOr<LayerCost> AlwaysActive(const TensorSource& source,
                                       const std::vector<TensorSpec>& specs) {
  LayerCost cost;
  CARAVAN_ASSIGN_OR_RETURN(cost.weight_bytes, CheckTensors(source, specs));
  cost.active_bytes_per_token = cost.weight_bytes;
  cost.flops_per_token = MatrixFlops(specs);
  return cost;
}

void Add(const LayerCost& cost, LayerCost& sum) {
  sum.weight_bytes += cost.weight_bytes;
  sum.active_bytes_per_token += cost.active_bytes_per_token;
  sum.flops_per_token += cost.flops_per_token;
  sum.kv_values_per_token += cost.kv_values_per_token;
}

/// Of a layer with these tensors.
absl::StatusOr<LayerCost> CostOfLayer(const ModelConfig& config, const TensorSource& source,
                                      std::vector<TensorSpec> tensors) {
  std::vector<TensorSpec> always;
  std::vector<TensorSpec> routed;
  for (TensorSpec& spec : tensors) {
    (spec.tensor_class == TensorClass::kRoutedExpert ? routed : always).push_back(std::move(spec));
  }
  CARAVAN_ASSIGN_OR_RETURN(LayerCost cost, AlwaysActive(source, always));
  cost.kv_values_per_token = config.Mla().kv_width();
  if (!routed.empty()) {
    CARAVAN_ASSIGN_OR_RETURN(LayerCost experts, AlwaysActive(source, routed));
    const int64_t chosen = config.router.num_experts_per_tok;
    // Experts of one layer may differ in type; a token then reads `chosen` of the mean size.
    experts.active_bytes_per_token = experts.weight_bytes / config.n_routed_experts * chosen;
    experts.flops_per_token = experts.flops_per_token / config.n_routed_experts * chosen;
    Add(experts, cost);
  }
  return cost;
}

}  // namespace

LayerCost ModelCost::Of(const StageSpec& stage) const {
  LayerCost sum;
  if (stage.embeds || stage.drafts) Add(embedding, sum);
  for (int layer = stage.first_layer; layer < stage.end_layer; ++layer) {
    Add(layers[static_cast<size_t>(layer)], sum);
  }
  if (stage.has_head) Add(head, sum);
  if (stage.drafts) Add(*mtp, sum);
  return sum;
}

absl::StatusOr<ModelCost> ComputeModelCost(const ModelConfig& config, const TensorSource& source,
                                           bool speculate) {
  ModelCost cost;
  CARAVAN_ASSIGN_OR_RETURN(cost.embedding, AlwaysActive(source, EmbeddingTensors(config)));
  cost.embedding.active_bytes_per_token = cost.embedding.weight_bytes / config.vocab_size;  // a row
  cost.embedding.flops_per_token = 0;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    CARAVAN_ASSIGN_OR_RETURN(LayerCost layer_cost,
                             CostOfLayer(config, source, LayerTensors(config, layer)));
    cost.layers.push_back(layer_cost);
  }
  CARAVAN_ASSIGN_OR_RETURN(cost.head, AlwaysActive(source, HeadTensors(config)));
  if (!speculate) return cost;
  if (config.num_nextn_predict_layers == 0) {
    return absl::InvalidArgumentError(
        "cannot speculate by mtp: the model has no layer of multi-token prediction "
        "(num_nextn_predict_layers is 0)");
  }
  CARAVAN_ASSIGN_OR_RETURN(LayerCost mtp, CostOfLayer(config, source, MtpTensors(config)));
  mtp.active_bytes_per_token += cost.head.active_bytes_per_token;
  mtp.flops_per_token += cost.head.flops_per_token;
  cost.mtp = mtp;
  return cost;
}

}  // namespace caravan
