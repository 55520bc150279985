#include "model/layer_cost.h"

#include <algorithm>
#include <string>

#include "base/status_macros.h"
#include "model/pack/pack_manifest.h"
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

/// Of a layer with these tensors.
absl::StatusOr<LayerCost> CostOfLayer(const ModelConfig& config, const TensorSource& source,
                                      int layer, std::vector<TensorSpec> tensors) {
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
    experts.expert_bytes = experts.weight_bytes;
    experts.num_experts = config.n_routed_experts;
    if (const ExpertFile* file = source.FindExperts(layer); file != nullptr) {
      experts.expert_slot_bytes = file->experts.stride;
    }
    experts.experts_per_token = chosen;
    cost += experts;
  }
  return cost;
}

}  // namespace

LayerCost& LayerCost::operator+=(const LayerCost& other) {
  // Experts without a slot, on either side, keep all where they are.
  const bool stuck = (num_experts > 0 && expert_slot_bytes == 0) ||
                     (other.num_experts > 0 && other.expert_slot_bytes == 0);
  weight_bytes += other.weight_bytes;
  expert_bytes += other.expert_bytes;
  num_experts += other.num_experts;
  expert_slot_bytes = stuck ? 0 : std::max(expert_slot_bytes, other.expert_slot_bytes);
  experts_per_token = std::max(experts_per_token, other.experts_per_token);
  active_bytes_per_token += other.active_bytes_per_token;
  flops_per_token += other.flops_per_token;
  sampled_flops_per_token += other.sampled_flops_per_token;
  kv_values_per_token += other.kv_values_per_token;
  return *this;
}

LayerCost ModelCost::Of(const StageSpec& stage) const {
  LayerCost sum;
  if (stage.embeds || stage.drafts) sum += embedding;
  for (int layer = stage.first_layer; layer < stage.end_layer; ++layer) {
    sum += layers[static_cast<size_t>(layer)];
  }
  if (stage.has_head) sum += head;
  if (stage.drafts) sum += *mtp;
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
                             CostOfLayer(config, source, layer, LayerTensors(config, layer)));
    cost.layers.push_back(layer_cost);
  }
  CARAVAN_ASSIGN_OR_RETURN(cost.head, AlwaysActive(source, HeadTensors(config)));
  cost.head.sampled_flops_per_token = cost.head.flops_per_token;
  if (!speculate) return cost;
  if (config.num_nextn_predict_layers == 0) {
    return absl::InvalidArgumentError(
        "cannot speculate by mtp: the model has no layer of multi-token prediction "
        "(num_nextn_predict_layers is 0)");
  }
  CARAVAN_ASSIGN_OR_RETURN(
      LayerCost mtp, CostOfLayer(config, source, config.num_hidden_layers, MtpTensors(config)));
  mtp.active_bytes_per_token += cost.head.active_bytes_per_token;
  mtp.flops_per_token += cost.head.flops_per_token;
  cost.mtp = mtp;
  return cost;
}

}  // namespace caravan
