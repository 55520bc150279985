#ifndef CARAVAN_WORKER_LAYER_H_
#define CARAVAN_WORKER_LAYER_H_

// One transformer layer of the DeepSeek family: which operation follows which. docs/model.md has
// the mathematics.

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "model/model_config.h"
#include "worker/experts/expert_store.h"
#include "worker/experts/router_lookahead.h"
#include "worker/experts/routing_observer.h"
#include "worker/stage_weights.h"

namespace caravan {

/// Scratch for layers of one model, for at most `max_rows` rows. All of it is taken when made.
class LayerWorkspace {
 public:
  /// As many bytes as LayerWorkspaceBytesPerRow (model/step_memory.h) says.
  LayerWorkspace(const ModelConfig& config, int64_t max_rows);

  int64_t num_bytes() const;

 private:
  friend class LayerRunner;
  std::vector<float> normed;          // [rows, hidden_size]
  std::vector<float> query_latent;    // [rows, q_lora_rank]
  std::vector<float> query;           // [rows, num_heads * q_head_dim]
  std::vector<float> kv_latent;       // [rows, kv_width]
  std::vector<float> heads;           // [rows, num_heads * v_head_dim]
  std::vector<float> delta;           // [rows, hidden_size]: what a block adds to the residual
  std::vector<float> router_logits;   // [rows, n_routed_experts]
  std::vector<int32_t> expert_ids;    // [rows, num_experts_per_tok]
  std::vector<float> expert_weights;  // [rows, num_experts_per_tok]
};

/// Borrows everything. Used by one thread at a time.
class LayerRunner {
 public:
  /// experts: null, or where the routed experts are that the weights lack. routing: null, or who is
  /// shown what the routers choose.
  LayerRunner(const ModelConfig& config, Backend& backend, ExpertStore* experts,
              RoutingObserver* routing, int64_t max_rows);

  /// hidden [num_rows, hidden_size] in place: hidden += attention(norm(hidden)), then
  /// hidden += ffn(norm(hidden)). `sequences` cover the rows; their cache blocks are this layer's.
  /// next: the layer that the rows go through next; null where that is not known.
  /// REQUIRES: num_rows <= max_rows.
  /// Errors: as ExpertBatches::Next; `hidden` is then of no use.
  absl::Status Run(const LayerWeights& weights, absl::Span<const SequenceRows> sequences,
                   const KvLayout& kv, int64_t num_rows, float* hidden,
                   const LayerWeights* next = nullptr);

 private:
  void Attend(const LayerWeights& weights, absl::Span<const SequenceRows> sequences,
              const KvLayout& kv, int64_t num_rows);
  absl::Status FeedForward(const LayerWeights& weights, int64_t num_rows, const float* hidden,
                           const LayerWeights* next);
  /// Tells the store which of the next layer's experts are likely to be chosen.
  void GuessExperts(const LayerWeights& next, int64_t num_rows, const float* hidden);

  const ModelConfig& config_;
  const MlaShape mla_;
  const RotaryEmbedding rotary_;
  Backend& backend_;
  ExpertStore* const experts_;
  RoutingObserver* const routing_;
  LayerWorkspace scratch_;
  RouterLookahead lookahead_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_LAYER_H_
