#include "worker/layer.h"

#include <algorithm>

#include "base/check.h"
#include "base/clock.h"
#include "base/status_macros.h"

namespace caravan {

LayerWorkspace::LayerWorkspace(const ModelConfig& config, int64_t max_rows) {
  const MlaShape mla = config.Mla();
  const auto floats = [max_rows](int64_t width) { return static_cast<size_t>(max_rows * width); };
  normed.resize(floats(config.hidden_size));
  query_latent.resize(floats(config.q_lora_rank));
  query.resize(floats(mla.num_heads * mla.q_head_dim()));
  kv_latent.resize(floats(mla.kv_width()));
  heads.resize(floats(mla.num_heads * mla.v_head_dim));
  delta.resize(floats(config.hidden_size));
  router_logits.resize(floats(config.n_routed_experts));
  expert_ids.resize(floats(config.router.num_experts_per_tok));
  expert_weights.resize(floats(config.router.num_experts_per_tok));
}

int64_t LayerWorkspace::num_bytes() const {
  int64_t bytes = static_cast<int64_t>(expert_ids.size() * sizeof(int32_t));
  for (const std::vector<float>* const buffer : {&normed, &query_latent, &query, &kv_latent, &heads,
                                                 &delta, &router_logits, &expert_weights}) {
    bytes += static_cast<int64_t>(buffer->size() * sizeof(float));
  }
  return bytes;
}

LayerRunner::LayerRunner(const ModelConfig& config, Backend& backend, ExpertStore* experts,
                         RoutingObserver* routing, int64_t max_rows)
    : config_(config),
      mla_(config.Mla()),
      rotary_(MakeRotaryEmbedding(config)),
      backend_(backend),
      experts_(experts),
      routing_(routing),
      scratch_(config, max_rows),
      lookahead_(config, backend) {}

absl::Status LayerRunner::Run(const LayerWeights& weights, absl::Span<const SequenceRows> sequences,
                              const KvLayout& kv, int64_t num_rows, float* hidden,
                              const LayerWeights* next) {
  CARAVAN_CHECK(num_rows * config_.hidden_size <= static_cast<int64_t>(scratch_.normed.size()));
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const int64_t count = num_rows * config_.hidden_size;

  backend_.RmsNorm(hidden, num_rows, config_.hidden_size, weights.input_layernorm, eps,
                   scratch_.normed.data());
  Attend(weights, sequences, kv, num_rows);
  backend_.Add(scratch_.delta.data(), count, hidden);

  backend_.RmsNorm(hidden, num_rows, config_.hidden_size, weights.post_attention_layernorm, eps,
                   scratch_.normed.data());
  CARAVAN_RETURN_IF_ERROR(FeedForward(weights, num_rows, hidden, next));
  backend_.Add(scratch_.delta.data(), count, hidden);
  return absl::OkStatus();
}

void LayerRunner::Attend(const LayerWeights& weights, absl::Span<const SequenceRows> sequences,
                         const KvLayout& kv, int64_t num_rows) {
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const float* const normed = scratch_.normed.data();
  float* const query = scratch_.query.data();

  if (config_.q_lora_rank > 0) {
    float* const latent = scratch_.query_latent.data();
    backend_.MatMul(weights.q_a_proj, normed, num_rows, latent);
    backend_.RmsNorm(latent, num_rows, config_.q_lora_rank, weights.q_a_layernorm, eps, latent);
    backend_.MatMul(weights.q_b_proj, latent, num_rows, query);
  } else {
    backend_.MatMul(weights.q_proj, normed, num_rows, query);
  }
  backend_.RotateQueries(mla_, rotary_.Table(), sequences, query);

  backend_.MatMul(weights.kv_a_proj_with_mqa, normed, num_rows, scratch_.kv_latent.data());
  backend_.WriteKv(mla_, rotary_.Table(), weights.kv_a_layernorm, eps, sequences, kv,
                   scratch_.kv_latent.data());
  backend_.MlaAttention(mla_, weights.kv_b_proj, sequences, kv, query, scratch_.heads.data());
  backend_.MatMul(weights.o_proj, scratch_.heads.data(), num_rows, scratch_.delta.data());
}

absl::Status LayerRunner::FeedForward(const LayerWeights& weights, int64_t num_rows,
                                      const float* hidden, const LayerWeights* next) {
  const float* const normed = scratch_.normed.data();
  float* const delta = scratch_.delta.data();
  const bool is_routed = weights.router.rows > 0;
  const int64_t k = config_.router.num_experts_per_tok;
  const auto num_choices = static_cast<size_t>(is_routed ? num_rows * k : 0);
  const auto expert_ids = absl::MakeConstSpan(scratch_.expert_ids).first(num_choices);
  const auto expert_weights = absl::MakeConstSpan(scratch_.expert_weights).first(num_choices);
  ExpertBatches* on_disk = nullptr;
  if (is_routed) {
    backend_.MatMul(weights.router, normed, num_rows, scratch_.router_logits.data());
    backend_.Route(config_.router, scratch_.router_logits.data(), weights.e_score_correction_bias,
                   num_rows, scratch_.expert_ids.data(), scratch_.expert_weights.data());
    // First of all: they are read while the shared experts are computed.
    if (experts_ != nullptr) on_disk = &experts_->Visit(weights.layer, expert_ids, expert_weights);
    if (routing_ != nullptr) {
      routing_->OnRouting(weights.layer, num_rows, expert_ids, expert_weights);
    }
  }
  if (weights.dense.gate.rows > 0) {
    backend_.Ffn(weights.dense, normed, num_rows, delta);
  } else {
    std::fill_n(delta, num_rows * config_.hidden_size, 0.0f);
  }
  if (experts_ != nullptr && next != nullptr) GuessExperts(*next, num_rows, hidden);
  if (!is_routed) return absl::OkStatus();
  const auto run = [&](ExpertBatches& experts) {
    return backend_.RoutedExperts(experts, normed, num_rows, expert_ids.data(),
                                  expert_weights.data(), k, delta);
  };
  if (on_disk != nullptr) return run(*on_disk);
  ResidentExperts resident(weights.experts, expert_ids);
  return run(resident);
}

// While this layer's routed experts are read, of which nothing is known yet.
void LayerRunner::GuessExperts(const LayerWeights& next, int64_t num_rows, const float* hidden) {
  if (next.router.rows == 0 || num_rows > RouterLookahead::kMaxRows) return;
  if (!experts_->WantsGuess(next.layer)) return;
  const absl::Duration begin = SteadyClock().Now();
  const RouterLookahead::Choice likely =
      lookahead_.Choose(next, hidden, scratch_.delta.data(), num_rows);
  experts_->Guess(next.layer, likely.expert_ids, likely.weights, SteadyClock().Now() - begin);
}

}  // namespace caravan
