#ifndef CARAVAN_MODEL_LAYER_COST_H_
#define CARAVAN_MODEL_LAYER_COST_H_

// What a part of the model costs: the one table of costs that planner, status and benchmarks share.

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model_config.h"
#include "model/stage_spec.h"
#include "model/tensor_source.h"

namespace caravan {

/// Of one layer, of the embedding, of the head, or of multi-token prediction.
struct LayerCost {
  int64_t weight_bytes = 0;  // all of its tensors, in a stage's memory
  int64_t active_bytes_per_token =
      0;                            // read for one token alone: num_experts_per_tok of the experts
  int64_t flops_per_token = 0;      // multiplications and additions in the matrices
  int64_t kv_values_per_token = 0;  // cached, in a format of the worker's (kernels/kv_rows.h)
};

struct ModelCost {
  LayerCost embedding;
  std::vector<LayerCost> layers;
  LayerCost head;
  // Where the last stage drafts: its layer of multi-token prediction, with one more pass through
  // the head's projection. (That stage holds the embedding too.)
  std::optional<LayerCost> mtp;

  /// The sum. REQUIRES: mtp is set, if the stage drafts.
  LayerCost Of(const StageSpec& stage) const;
};

/// From the tensors' true types and sizes. With `mtp` where `speculate`.
/// Errors: InvalidArgument - as CheckTensors: a tensor is missing or wrong; `speculate`, but the
///         model has no layer of multi-token prediction.
absl::StatusOr<ModelCost> ComputeModelCost(const ModelConfig& config, const TensorSource& source,
                                           bool speculate = false);

}  // namespace caravan

#endif  // CARAVAN_MODEL_LAYER_COST_H_
