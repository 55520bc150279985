#ifndef CARAVAN_MODEL_LAYER_COST_H_
#define CARAVAN_MODEL_LAYER_COST_H_

// What a part of the model costs: the one table of costs that planner, status and benchmarks share.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model_config.h"
#include "model/stage_spec.h"
#include "model/tensor_source.h"

namespace caravan {

/// Of one layer, of the embedding, or of the head.
struct LayerCost {
  int64_t weight_bytes = 0;  // all of its tensors
  int64_t active_bytes_per_token =
      0;                           // read for one token alone: num_experts_per_tok of the experts
  int64_t flops_per_token = 0;     // multiplications and additions in the matrices
  int64_t kv_bytes_per_token = 0;  // of the cache
};

struct ModelCost {
  LayerCost embedding;
  std::vector<LayerCost> layers;
  LayerCost head;

  LayerCost Of(const StageSpec& stage) const;  // The sum.
};

/// From the tensors' true types and sizes.
/// Errors: InvalidArgument - as CheckTensors: a tensor is missing or wrong.
absl::StatusOr<ModelCost> ComputeModelCost(const ModelConfig& config, const TensorSource& source);

}  // namespace caravan

#endif  // CARAVAN_MODEL_LAYER_COST_H_
