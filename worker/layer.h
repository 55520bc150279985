#ifndef CARAVAN_WORKER_LAYER_H_
#define CARAVAN_WORKER_LAYER_H_

// One transformer layer of the DeepSeek family: which operation follows which. docs/model.md has
// the mathematics.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/memory.h"
#include "model/model_config.h"
#include "worker/experts/card_experts.h"
#include "worker/experts/expert_store.h"
#include "worker/experts/router_lookahead.h"
#include "worker/experts/routing_observer.h"
#include "worker/stage_weights.h"

namespace caravan {

/// Scratch for layers of one model, for at most `max_rows` rows. All of it is taken when made.
class LayerWorkspace {
 public:
  /// As many bytes as LayerWorkspaceBytesPerRow (model/step_memory.h) says. Errors: as
  /// Memory::Allocate.
  static absl::StatusOr<LayerWorkspace> Create(const ModelConfig& config, Memory& memory,
                                               int64_t max_rows);

  int64_t num_bytes() const;

 private:
  friend class LayerRunner;
  LayerWorkspace() = default;

  Array normed;          // f32 [rows, hidden_size]
  Array query_latent;    // f32 [rows, q_lora_rank]
  Array query;           // f32 [rows, num_heads * q_head_dim]
  Array kv_latent;       // f32 [rows, kv_width]
  Array heads;           // f32 [rows, num_heads * v_head_dim]
  Array delta;           // f32 [rows, hidden_size]: what a block adds to the residual
  Array router_logits;   // f32 [rows, n_routed_experts]
  Array expert_ids;      // i32 [rows, num_experts_per_tok]
  Array expert_weights;  // f32 [rows, num_experts_per_tok]
};

/// Borrows everything. Used by one thread at a time.
class LayerRunner {
 public:
  /// experts: null, or where the routed experts are that the weights lack. on_card: null, or what
  /// those go through. routing: null, or who is shown what the routers choose. Errors: as
  /// Memory::Allocate of the backend's.
  static absl::StatusOr<std::unique_ptr<LayerRunner>> Create(const ModelConfig& config,
                                                             Backend& backend, ExpertStore* experts,
                                                             CardExperts* on_card,
                                                             RoutingObserver* routing,
                                                             int64_t max_rows);

  /// hidden [num_rows, hidden_size] in place: hidden += attention(norm(hidden)), then
  /// hidden += ffn(norm(hidden)). `sequences` cover the rows; their cache blocks are this layer's.
  /// next: the layer that the rows go through next; null where that is not known.
  /// REQUIRES: num_rows <= max_rows.
  /// Errors: as ExpertBatches::Next and Memory::CopyOut; `hidden` is then of no use.
  absl::Status Run(const LayerWeights& weights, absl::Span<const SequenceRows> sequences,
                   const KvLayout& kv, int64_t num_rows, float* hidden,
                   const LayerWeights* next = nullptr);

  /// Run's first part, up to what the router chooses: what there is to rehearse (Stage) where a
  /// rehearsal's choices would be counted as use of experts.
  absl::Status Choose(const LayerWeights& weights, absl::Span<const SequenceRows> sequences,
                      const KvLayout& kv, int64_t num_rows, float* hidden);

  /// Whether Run waits for what the router chooses: the host decides where experts are computed, or
  /// is shown it.
  bool shows_choices() const {
    return experts_ != nullptr || routing_ != nullptr || backend_.memory().is_host();
  }

 private:
  LayerRunner(const ModelConfig& config, Backend& backend, ExpertStore* experts,
              CardExperts* on_card, RoutingObserver* routing, LayerWorkspace scratch,
              RouterLookahead lookahead, Array inv_freq, float rope_amplitude);

  void Attend(const LayerWeights& weights, absl::Span<const SequenceRows> sequences,
              const KvLayout& kv, int64_t num_rows);
  absl::Status FeedForward(const LayerWeights& weights, int64_t num_rows, const float* hidden,
                           const LayerWeights* next);
  /// Adds the routed experts' sum to scratch_.delta.
  absl::Status RunExperts(ExpertBatches& experts, int64_t num_rows);
  /// Tells the store which of the next layer's experts are likely to be chosen.
  absl::Status GuessExperts(const LayerWeights& next, int64_t num_rows, const float* hidden);

  const ModelConfig& config_;
  const MlaShape mla_;
  Backend& backend_;
  const Array inv_freq_;
  const RopeTable rope_;  // over inv_freq_
  ExpertStore* const experts_;
  CardExperts* const on_card_;
  RoutingObserver* const routing_;
  LayerWorkspace scratch_;
  RouterLookahead lookahead_;
  // What the router chose, where the host cannot read it in scratch_.
  std::vector<int32_t> host_ids_;
  std::vector<float> host_weights_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_LAYER_H_
