#ifndef CARAVAN_MODEL_STEP_MEMORY_H_
#define CARAVAN_MODEL_STEP_MEMORY_H_

// What running steps takes of a worker's memory beside weights and KV cache, from the model's sizes
// and the rows of a step alone. Buffers that a stage takes when it is made, the backend's scratch,
// and the steps that wait. Not counted: whole prompts' logits, where a job asks for them.

#include <cstdint>

#include "kernels/cuda/cuda_scratch.h"
#include "model/model_config.h"
#include "model/stage_spec.h"

namespace caravan {

/// Rows whose logits the head computes at once: a sequence wants one, so this bounds the memory of
/// steps that ask for all (16 rows of R1's vocabulary are 8 MB).
inline constexpr int64_t kHeadRows = 16;

/// Rows of a step for which the next layer's experts are guessed
/// (worker/experts/router_lookahead.h).
inline constexpr int64_t kLookaheadRows = 32;

/// Steps that a worker may be taking from the hop before and handing to the next, beside those that
/// wait: gRPC holds one of each.
inline constexpr int64_t kStepsOnLinks = 2;

/// Places for the hidden states of a step that a worker on a card has where they come or go by
/// NCCL: of a step that is being received, one that waits, one that is computed, one that is being
/// sent.
inline constexpr int kHiddenSlots = 4;

/// What NCCL takes of a card for a hop, at either end: its buffers and what the driver rounds up.
inline constexpr int64_t kNcclHopBytes = int64_t{18} << 20;

/// What NCCL's kernels take of it besides, with a process's first hop: 440 MiB of an H100.
inline constexpr int64_t kNcclProcessBytes = int64_t{448} << 20;

/// In bytes.
struct StepMemory {
  int64_t layers =
      0;  // hidden states, the layers' workspace and guesses, the backend's shared scratch
  int64_t head = 0;
  int64_t drafting = 0;
  int64_t activations = 0;  // of one step between two stages
  int64_t hops = 0;         // to and from other stages, beside those

  /// Of a stage among `num_stages`, which all steps in flight may wait for: there are as many.
  int64_t Of(const StageSpec& stage, int num_stages) const;
};

/// For steps of at most `max_rows` rows, on a CPU: all is in its memory.
StepMemory ComputeStepMemory(const ModelConfig& config, int64_t max_rows);

/// The same of a card's memory, with KV blocks of so many tokens, as if the hops went by NCCL:
/// where they do not, steps wait in the host's. What shares experts with the CPU (CardExpertBytes)
/// is counted wherever they are.
StepMemory ComputeCardStepMemory(const ModelConfig& config, int64_t max_rows,
                                 int64_t kv_block_tokens);

/// Of what is left aside of the slots where a card has not all experts (CardExperts).
int64_t CardExpertBytes(const ModelConfig& config, int64_t max_rows);

/// What a CUDA backend needs room for then.
CudaBackendLimits CudaLimits(const ModelConfig& config, int64_t max_rows, int64_t kv_block_tokens);

/// Of the buffers that layers share (LayerWorkspace), a row.
int64_t LayerWorkspaceBytesPerRow(const ModelConfig& config);

/// Of those in which the next layer's experts are guessed (RouterLookahead).
int64_t LookaheadBytes(const ModelConfig& config);

}  // namespace caravan

#endif  // CARAVAN_MODEL_STEP_MEMORY_H_
