#ifndef CARAVAN_WORKER_STAGE_WEIGHTS_H_
#define CARAVAN_WORKER_STAGE_WEIGHTS_H_

// The weights of one stage in the memory of its backend, in the formats of the checkpoint, matrices
// in the layout that they are multiplied fastest in (LoadedInfo): a model run as it is equals its
// pack of the same formats. (Norms and the router's bias, a few kilobytes a layer, become f32.)
//
// Immutable once loaded, so thread-safe.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/memory.h"
#include "model/model_config.h"
#include "model/stage_spec.h"
#include "model/tensor_source.h"
#include "worker/weight_part.h"

namespace caravan {

/// One transformer layer. Names as in the checkpoint; pointers borrow from StageWeights.
struct LayerWeights {
  int layer = 0;                           // as the model counts
  const float* input_layernorm = nullptr;  // [hidden_size]
  // Queries: q_proj at once, or q_a_proj, q_a_layernorm, q_b_proj where config.q_lora_rank > 0.
  Matrix q_proj;
  Matrix q_a_proj;
  const float* q_a_layernorm = nullptr;  // [q_lora_rank]
  Matrix q_b_proj;
  Matrix kv_a_proj_with_mqa;
  const float* kv_a_layernorm = nullptr;  // [kv_lora_rank]
  Matrix kv_b_proj;
  Matrix o_proj;
  const float* post_attention_layernorm = nullptr;  // [hidden_size]
  FfnWeights dense;  // a dense layer's FFN, or a MoE layer's shared experts (rows 0: it has none)
  Matrix router;     // MoE layers: [n_routed_experts, hidden_size]
  const float* e_score_correction_bias = nullptr;  // [n_routed_experts], where the router has it
  std::vector<FfnWeights> experts;                 // MoE layers: by id; empty where they were left
};

/// The layer of multi-token prediction, beside the embedding and the head that it shares with the
/// model.
struct MtpWeights {
  const float* enorm = nullptr;  // [hidden_size]
  const float* hnorm = nullptr;  // [hidden_size]
  Matrix eh_proj;                // [hidden_size, 2 * hidden_size]
  LayerWeights layer;
  const float* head_norm = nullptr;  // [hidden_size]
};

class StageWeights {
 public:
  using Progress = LoadProgress;

  /// What becomes of the routed experts.
  enum class Experts { kLoad, kLeave };

  /// Reads the stage's tensors to `memory`, and no others: those of routed experts only if
  /// `experts` says so. In the host's memory also none of the parts in `held`, which are shared,
  /// and to which it adds what it reads, as LoadWeightParts; null: nothing is held. Errors:
  /// InvalidArgument - a tensor is missing or wrong (as CheckTensors); as LoadWeightParts.
  static absl::StatusOr<std::unique_ptr<StageWeights>> Load(
      const ModelConfig& config, const StageSpec& stage, const TensorSource& source,
      const Progress& progress, Memory& memory = HostMemory(), Experts experts = Experts::kLoad,
      WeightParts* held = nullptr);

  Matrix embedding;                  // [vocab_size, hidden_size], if the stage embeds or drafts
  std::vector<LayerWeights> layers;  // by layer - stage.first_layer
  const float* final_layernorm = nullptr;  // [hidden_size], if the stage has the head
  Matrix lm_head;                          // [vocab_size, hidden_size], if the stage has the head
  std::optional<MtpWeights> mtp;           // if the stage drafts

  /// What CheckTensors says of the stage's tensors.
  int64_t num_bytes() const { return num_bytes_; }

  /// What may outlive the stage: nothing where it lies in a card's memory, which is the stage's.
  WeightParts held() const { return on_host_ ? parts_ : WeightParts(); }

 private:
  StageWeights() = default;
  WeightParts parts_;
  int64_t num_bytes_ = 0;
  bool on_host_ = true;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_STAGE_WEIGHTS_H_
