#include "worker/layer.h"

#include <utility>

#include "absl/memory/memory.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/status_macros.h"

namespace caravan {

absl::StatusOr<LayerWorkspace> LayerWorkspace::Create(const ModelConfig& config, Memory& memory,
                                                      int64_t max_rows) {
  const MlaShape mla = config.Mla();
  const int64_t k = config.router.num_experts_per_tok;
  LayerWorkspace workspace;
  for (const auto& [array, width] :
       {std::pair{&workspace.normed, config.hidden_size},
        std::pair{&workspace.query_latent, config.q_lora_rank},
        std::pair{&workspace.query, mla.num_heads * mla.q_head_dim()},
        std::pair{&workspace.kv_latent, mla.kv_width()},
        std::pair{&workspace.heads, mla.num_heads * mla.v_head_dim},
        std::pair{&workspace.delta, config.hidden_size},
        std::pair{&workspace.router_logits, config.n_routed_experts},
        std::pair{&workspace.expert_ids, k}, std::pair{&workspace.expert_weights, k}}) {
    // Floats or ids of as many bytes.
    CARAVAN_ASSIGN_OR_RETURN(*array, AllocateValues<float>(memory, max_rows * width));
  }
  return workspace;
}

int64_t LayerWorkspace::num_bytes() const {
  int64_t bytes = 0;
  for (const Array* const array : {&normed, &query_latent, &query, &kv_latent, &heads, &delta,
                                   &router_logits, &expert_ids, &expert_weights}) {
    bytes += array->bytes();
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<LayerRunner>> LayerRunner::Create(
    const ModelConfig& config, Backend& backend, ExpertStore* experts, CardExperts* on_card,
    RoutingObserver* routing, int64_t max_rows) {
  CARAVAN_ASSIGN_OR_RETURN(LayerWorkspace scratch,
                           LayerWorkspace::Create(config, backend.memory(), max_rows));
  CARAVAN_ASSIGN_OR_RETURN(RouterLookahead lookahead, RouterLookahead::Create(config, backend));
  const RotaryEmbedding rotary = MakeRotaryEmbedding(config);
  const auto rope_bytes = static_cast<int64_t>(rotary.inv_freq.size() * sizeof(float));
  CARAVAN_ASSIGN_OR_RETURN(Array inv_freq, backend.memory().Allocate(rope_bytes));
  CARAVAN_RETURN_IF_ERROR(
      backend.memory().CopyIn(rotary.inv_freq.data(), rope_bytes, inv_freq.data()));
  return absl::WrapUnique(new LayerRunner(config, backend, experts, on_card, routing,
                                          std::move(scratch), std::move(lookahead),
                                          std::move(inv_freq), rotary.amplitude));
}

LayerRunner::LayerRunner(const ModelConfig& config, Backend& backend, ExpertStore* experts,
                         CardExperts* on_card, RoutingObserver* routing, LayerWorkspace scratch,
                         RouterLookahead lookahead, Array inv_freq, float rope_amplitude)
    : config_(config),
      mla_(config.Mla()),
      backend_(backend),
      inv_freq_(std::move(inv_freq)),
      rope_{absl::MakeConstSpan(inv_freq_.floats(), static_cast<size_t>(inv_freq_.num_floats())),
            rope_amplitude},
      experts_(experts),
      on_card_(on_card),
      routing_(routing),
      scratch_(std::move(scratch)),
      lookahead_(std::move(lookahead)) {}

absl::Status LayerRunner::Run(const LayerWeights& weights, absl::Span<const SequenceRows> sequences,
                              const KvLayout& kv, int64_t num_rows, float* hidden,
                              const LayerWeights* next) {
  CARAVAN_RETURN_IF_ERROR(Choose(weights, sequences, kv, num_rows, hidden));
  CARAVAN_RETURN_IF_ERROR(FeedForward(weights, num_rows, hidden, next));
  backend_.Add(scratch_.delta.floats(), num_rows * config_.hidden_size, hidden);
  return absl::OkStatus();
}

absl::Status LayerRunner::Choose(const LayerWeights& weights,
                                 absl::Span<const SequenceRows> sequences, const KvLayout& kv,
                                 int64_t num_rows, float* hidden) {
  CARAVAN_CHECK(num_rows * config_.hidden_size <= scratch_.normed.num_floats());
  const float eps = static_cast<float>(config_.rms_norm_eps);
  float* const normed = scratch_.normed.floats();
  return backend_.Repeat({weights.layer, num_rows, hidden}, sequences, [&] {
    backend_.RmsNorm(hidden, num_rows, config_.hidden_size, weights.input_layernorm, eps, normed);
    Attend(weights, sequences, kv, num_rows);
    backend_.Add(scratch_.delta.floats(), num_rows * config_.hidden_size, hidden);
    backend_.RmsNorm(hidden, num_rows, config_.hidden_size, weights.post_attention_layernorm, eps,
                     normed);
    if (weights.router.rows > 0) {
      backend_.MatMul(weights.router, normed, num_rows, scratch_.router_logits.floats());
      backend_.Route(config_.router, scratch_.router_logits.floats(),
                     weights.e_score_correction_bias, num_rows, scratch_.expert_ids.as<int32_t>(),
                     scratch_.expert_weights.floats());
    }
    return absl::OkStatus();
  });
}

void LayerRunner::Attend(const LayerWeights& weights, absl::Span<const SequenceRows> sequences,
                         const KvLayout& kv, int64_t num_rows) {
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const float* const normed = scratch_.normed.floats();
  float* const query = scratch_.query.floats();

  if (config_.q_lora_rank > 0) {
    float* const latent = scratch_.query_latent.floats();
    backend_.MatMul(weights.q_a_proj, normed, num_rows, latent);
    backend_.RmsNorm(latent, num_rows, config_.q_lora_rank, weights.q_a_layernorm, eps, latent);
    backend_.MatMul(weights.q_b_proj, latent, num_rows, query);
  } else {
    backend_.MatMul(weights.q_proj, normed, num_rows, query);
  }
  backend_.RotateQueries(mla_, rope_, sequences, query);

  backend_.MatMul(weights.kv_a_proj_with_mqa, normed, num_rows, scratch_.kv_latent.floats());
  backend_.WriteKv(mla_, rope_, weights.kv_a_layernorm, eps, sequences, kv,
                   scratch_.kv_latent.floats());
  backend_.MlaAttention(mla_, weights.kv_b_proj, sequences, kv, query, scratch_.heads.floats());
  backend_.MatMul(weights.o_proj, scratch_.heads.floats(), num_rows, scratch_.delta.floats());
}

absl::Status LayerRunner::FeedForward(const LayerWeights& weights, int64_t num_rows,
                                      const float* hidden, const LayerWeights* next) {
  Memory& memory = backend_.memory();
  const float* const normed = scratch_.normed.floats();
  float* const delta = scratch_.delta.floats();
  const bool is_routed = weights.router.rows > 0;
  const int64_t num_choices = is_routed ? num_rows * config_.router.num_experts_per_tok : 0;
  absl::Span<const int32_t> expert_ids;
  ExpertBatches* on_disk = nullptr;
  if (is_routed && shows_choices()) {
    CARAVAN_ASSIGN_OR_RETURN(expert_ids, OnHost(memory, scratch_.expert_ids.as<const int32_t>(),
                                                num_choices, host_ids_));
    CARAVAN_ASSIGN_OR_RETURN(
        const absl::Span<const float> expert_weights,
        OnHost(memory, scratch_.expert_weights.as<const float>(), num_choices, host_weights_));
    // First of all: they are read while the shared experts are computed.
    if (on_card_ != nullptr) {
      CARAVAN_RETURN_IF_ERROR(
          on_card_->Begin(weights.layer, expert_ids, expert_weights, num_rows, normed));
    } else if (experts_ != nullptr) {
      on_disk = &experts_->Visit(weights.layer, expert_ids, expert_weights);
    }
    if (routing_ != nullptr) {
      routing_->OnRouting(weights.layer, num_rows, expert_ids, expert_weights);
    }
  }
  if (weights.dense.gate.rows > 0) {
    backend_.Ffn(weights.dense, normed, num_rows, delta);
  } else {
    CARAVAN_RETURN_IF_ERROR(
        memory.Clear(delta, num_rows * config_.hidden_size * static_cast<int64_t>(sizeof(float))));
  }
  if (experts_ != nullptr && next != nullptr) {
    CARAVAN_RETURN_IF_ERROR(GuessExperts(*next, num_rows, hidden));
  }
  if (!is_routed) return absl::OkStatus();
  if (on_card_ != nullptr) {
    return on_card_->Run(normed, scratch_.expert_weights.floats(), delta);
  }
  if (on_disk != nullptr) return RunExperts(*on_disk, num_rows);
  // To ask a card which ones were chosen would be to wait for it.
  ResidentExperts resident = shows_choices() ? ResidentExperts(weights.experts, expert_ids)
                                             : ResidentExperts(weights.experts);
  return RunExperts(resident, num_rows);
}

absl::Status LayerRunner::RunExperts(ExpertBatches& experts, int64_t num_rows) {
  return backend_.RoutedExperts(experts, scratch_.normed.floats(), num_rows,
                                scratch_.expert_ids.as<int32_t>(), scratch_.expert_weights.floats(),
                                config_.router.num_experts_per_tok, scratch_.delta.floats());
}

// While this layer's routed experts are read, of which nothing is known yet.
absl::Status LayerRunner::GuessExperts(const LayerWeights& next, int64_t num_rows,
                                       const float* hidden) {
  if (next.router.rows == 0 || num_rows > RouterLookahead::kMaxRows) return absl::OkStatus();
  if (!experts_->WantsGuess(next.layer)) return absl::OkStatus();
  const absl::Duration begin = SteadyClock().Now();
  CARAVAN_ASSIGN_OR_RETURN(const RouterLookahead::Choice likely,
                           lookahead_.Choose(next, hidden, scratch_.delta.floats(), num_rows));
  experts_->Guess(next.layer, likely.expert_ids, likely.weights, SteadyClock().Now() - begin);
  return absl::OkStatus();
}

}  // namespace caravan
