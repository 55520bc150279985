#ifndef CARAVAN_MODEL_LAYER_COST_H_
#define CARAVAN_MODEL_LAYER_COST_H_

// What a part of the model costs: the one table of costs that planner, status and benchmarks share.

#include <algorithm>
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
  // Of its routed experts; 0 where it has none. In a sum, slot and choice are the largest.
  int64_t expert_bytes = 0;       // all of them; the rest of weight_bytes is always active
  int64_t num_experts = 0;        // of all layers together
  int64_t expert_slot_bytes = 0;  // one of them as it lies on the disk (TensorSource::FindExperts);
                                  // 0: not each in one run, so they cannot be left there
  int64_t experts_per_token = 0;  // that one row of a layer chooses
  int64_t active_bytes_per_token =
      0;                        // read for one token alone: num_experts_per_tok of the experts
  int64_t flops_per_token = 0;  // multiplications and additions in the matrices
  int64_t sampled_flops_per_token =
      0;                            // of these, those of rows alone that a token is sampled after
  int64_t kv_values_per_token = 0;  // cached, in a format of the worker's (kernels/kv_rows.h)

  /// What is in memory wherever the experts are.
  int64_t always_active_bytes() const { return weight_bytes - expert_bytes; }
  /// Whether its experts may stay on a disk. Only a packed model's may.
  bool can_offload() const { return expert_slot_bytes > 0; }
  /// What it needs at least then: a row's choice, and one that is kept while another passes.
  int64_t least_expert_slots() const {
    return std::min(std::max<int64_t>(experts_per_token, 2), num_experts);
  }

  LayerCost& operator+=(const LayerCost& other);
  friend bool operator==(const LayerCost&, const LayerCost&) = default;
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
