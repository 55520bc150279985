#include "model/step_memory.h"

#include <algorithm>

#include "base/int_math.h"
#include "kernels/cpu/cpu_scratch.h"
#include "kernels/logit_summary.h"

namespace caravan {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);

// A card's driver rounds an array up to 2 MiB, and a stage has fewer than 48.
constexpr int64_t kCardRoundingBytes = int64_t{96} << 20;

/// Of a matrix that MatMul takes: of o_proj, q_b_proj, eh_proj; all others take the hidden state.
int64_t MostColumns(const ModelConfig& config) {
  const MlaShape mla = config.Mla();
  return std::max(
      {mla.num_heads * mla.v_head_dim, config.q_lora_rank,
       config.num_nextn_predict_layers > 0 ? 2 * config.hidden_size : config.hidden_size});
}

/// Of the feed-forward networks that all rows take.
int64_t DenseInter(const ModelConfig& config) {
  return std::max(config.intermediate_size, config.n_shared_experts * config.moe_intermediate_size);
}

int64_t CpuBackendScratchBytes(const ModelConfig& config, int64_t max_rows) {
  CpuScratchShape shape;
  shape.mla = config.Mla();
  shape.most_columns = MostColumns(config);
  shape.hidden_size = config.hidden_size;
  shape.dense_inter = DenseInter(config);
  shape.expert_inter = config.moe_intermediate_size;
  shape.experts_per_row = config.router.num_experts_per_tok;
  shape.max_rows = max_rows;
  return CpuScratchBytes(shape);
}

/// Without the backend's scratch and without the steps that wait.
StepMemory StageBuffers(const ModelConfig& config, int64_t max_rows) {
  const int64_t hidden_bytes = max_rows * config.hidden_size * kFloatBytes;
  StepMemory memory;
  memory.layers =
      hidden_bytes + max_rows * LayerWorkspaceBytesPerRow(config) + LookaheadBytes(config);
  memory.head = kHeadRows * (config.hidden_size + config.vocab_size) * kFloatBytes;
  // The drafting layer's hidden states, and the embedding and the hidden state that they are made
  // of, apart and side by side.
  memory.drafting = 4 * hidden_bytes;
  return memory;
}

}  // namespace

int64_t StepMemory::Of(const StageSpec& stage, int num_stages) const {
  int64_t bytes = layers;
  if (stage.has_head) bytes += head;
  if (stage.drafts) bytes += drafting;
  // Ids come in and results go out of a stage that is the whole pipeline.
  if (!stage.embeds || !stage.has_head) bytes += hops + (num_stages + kStepsOnLinks) * activations;
  return bytes;
}

StepMemory ComputeStepMemory(const ModelConfig& config, int64_t max_rows) {
  StepMemory memory = StageBuffers(config, max_rows);
  memory.layers += CpuBackendScratchBytes(config, max_rows);
  memory.activations = max_rows * config.hidden_size * kFloatBytes;
  return memory;
}

StepMemory ComputeCardStepMemory(const ModelConfig& config, int64_t max_rows,
                                 int64_t kv_block_tokens) {
  // Ids of what is embedded and the rotary table, which the host keeps elsewhere.
  const int64_t rope_bytes = config.Mla().qk_rope_head_dim / 2 * kFloatBytes;
  const int64_t id_bytes = max_rows * static_cast<int64_t>(sizeof(int32_t));
  StepMemory memory = StageBuffers(config, max_rows);
  memory.layers += kCardRoundingBytes + id_bytes + rope_bytes + CardExpertBytes(config, max_rows) +
                   CudaScratchBytes(CudaLimits(config, max_rows, kv_block_tokens));
  memory.drafting += id_bytes;
  memory.head += kHeadRows * static_cast<int64_t>(sizeof(LogitQuestion) + sizeof(LogitSummary));
  // One of the slots is counted with the stage's buffers.
  memory.hops =
      (kHiddenSlots - 1) * max_rows * config.hidden_size * kFloatBytes + 2 * kNcclHopBytes;
  return memory;
}

int64_t CardExpertBytes(const ModelConfig& config, int64_t max_rows) {
  // Ids of those computed where they lie, and of those copied; what the CPU adds. While costs are
  // measured, inputs and weights of rows.
  return max_rows * kFloatBytes * (3 * config.router.num_experts_per_tok + 2 * config.hidden_size);
}

CudaBackendLimits CudaLimits(const ModelConfig& config, int64_t max_rows, int64_t kv_block_tokens) {
  const MlaShape mla = config.Mla();
  CudaBackendLimits limits;
  limits.ffn.max_rows = max_rows;
  limits.ffn.max_chosen = config.router.num_experts_per_tok;
  limits.ffn.hidden = config.hidden_size;
  limits.ffn.expert_inter = config.moe_intermediate_size;
  limits.ffn.dense_inter = DenseInter(config);
  limits.max_cols = MostColumns(config);
  limits.max_logit_rows = kHeadRows;
  limits.max_vocab = config.vocab_size;
  limits.max_kv_blocks = max_rows * CeilDiv(config.max_position_embeddings, kv_block_tokens);
  // One row at the last position, if no more.
  limits.attention_scratch_bytes = std::max(
      limits.attention_scratch_bytes, CudaAttentionRowBytes(mla, config.max_position_embeddings));
  return limits;
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
