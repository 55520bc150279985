#include "model/step_memory.h"

#include <algorithm>

#include "kernels/cpu/cpu_scratch.h"

namespace caravan {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);

int64_t BackendScratchBytes(const ModelConfig& config, int64_t max_rows) {
  CpuScratchShape shape;
  shape.mla = config.Mla();
  // Of o_proj, q_b_proj, eh_proj; all others take the hidden state.
  shape.most_columns =
      std::max({shape.mla.num_heads * shape.mla.v_head_dim, config.q_lora_rank,
                config.num_nextn_predict_layers > 0 ? 2 * config.hidden_size : config.hidden_size});
  shape.hidden_size = config.hidden_size;
  shape.dense_inter =
      std::max(config.intermediate_size, config.n_shared_experts * config.moe_intermediate_size);
  shape.expert_inter = config.moe_intermediate_size;
  shape.experts_per_row = config.router.num_experts_per_tok;
  shape.max_rows = max_rows;
  return CpuScratchBytes(shape);
}

}  // namespace

int64_t StepMemory::Of(const StageSpec& stage, int num_stages) const {
  int64_t bytes = layers;
  if (stage.has_head) bytes += head;
  if (stage.drafts) bytes += drafting;
  // Ids come in and results go out of a stage that is the whole pipeline.
  if (!stage.embeds || !stage.has_head) bytes += (num_stages + kStepsOnLinks) * activations;
  return bytes;
}

StepMemory ComputeStepMemory(const ModelConfig& config, int64_t max_rows) {
  const int64_t hidden_bytes = max_rows * config.hidden_size * kFloatBytes;
  StepMemory memory;
  memory.layers = hidden_bytes + max_rows * LayerWorkspaceBytesPerRow(config) +
                  LookaheadBytes(config) + BackendScratchBytes(config, max_rows);
  memory.head = kHeadRows * (config.hidden_size + config.vocab_size) * kFloatBytes;
  // The drafting layer's hidden states, and the embedding and the hidden state that they are made
  // of, apart and side by side.
  memory.drafting = 4 * hidden_bytes;
  memory.activations = hidden_bytes;
  return memory;
}

int64_t LayerWorkspaceBytesPerRow(const ModelConfig& config) {
  const MlaShape mla = config.Mla();
  const int64_t floats = 2 * config.hidden_size + config.q_lora_rank +
                         mla.num_heads * (mla.q_head_dim() + mla.v_head_dim) + mla.kv_width() +
                         config.n_routed_experts + 2 * config.router.num_experts_per_tok;
  return floats * kFloatBytes;
}

int64_t LookaheadBytes(const ModelConfig& config) {
  return kLookaheadRows * kFloatBytes *
         (config.hidden_size + config.n_routed_experts + 2 * config.router.num_experts_per_tok);
}

}  // namespace caravan
