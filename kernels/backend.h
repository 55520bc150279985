#ifndef CARAVAN_KERNELS_BACKEND_H_
#define CARAVAN_KERNELS_BACKEND_H_

// The arithmetic of one stage on raw buffers: every operation that a layer needs, and nothing about
// layers, files or processes. Implementations: kernels/reference (plain, in double), kernels/cpu,
// kernels/cuda (whose pointers are the card's: kernels/cuda/cuda_backend.h).
//
// All activations are float32, row-major, one row a token. Every output row depends on its own
// inputs only and is reduced in a fixed order, so that it is the same to the bit in any batch.
// Inputs and outputs do not overlap unless said. Shapes are the caller's duty (broken ones abort).
//
// An object is used by one thread at a time.

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "base/dtype.h"
#include "kernels/expert_batches.h"
#include "kernels/matrix.h"
#include "kernels/memory.h"

namespace caravan {

/// Sizes of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1), in the names
/// of config.json.
struct MlaShape {
  int64_t num_heads = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;  // even
  int64_t v_head_dim = 0;
  int64_t kv_lora_rank = 0;
  float softmax_scale = 0;

  int64_t q_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  /// Values cached for a token: the normed latent, then the rotated rope part.
  int64_t kv_width() const { return kv_lora_rank + qk_rope_head_dim; }
};

/// Rotary position embedding: pair i of position p turns by p * inv_freq[i], and its cosine and
/// sine are multiplied by `amplitude`.
struct RopeTable {
  absl::Span<const float> inv_freq;  // [qk_rope_head_dim / 2]
  float amplitude = 1;
};

/// How a cache block holds its tokens: `dtype` [block_tokens, kv_width], a token's values in a row.
struct KvLayout {
  DType dtype = DType::kF32;  // one that CheckKvDType (kernels/kv_rows.h) takes for the shape
  int64_t block_tokens = 0;
};

/// The rows of one sequence in a batch, and where its keys and values lie.
struct SequenceRows {
  int64_t first_row = 0;
  int64_t num_rows = 0;
  int64_t first_position = 0;  // Row first_row + i has position first_position + i.
  // Cache blocks in order of position, each as KvLayout says: enough for the last row.
  absl::Span<std::byte* const> kv_blocks;
};

enum class ScoringFunc { kSigmoid, kSoftmax };

enum class TopkMethod {
  kGreedy,              // V2-Lite: the best experts by score
  kGroupLimitedGreedy,  // V2: among the topk_group groups with the best single expert
  kNoauxTc,             // V3: by score + correction bias, a group's rank the sum of its best two
};

struct RouterShape {
  int64_t n_routed_experts = 0;
  int64_t num_experts_per_tok = 0;
  int64_t n_group = 1;  // divides n_routed_experts
  int64_t topk_group = 1;
  ScoringFunc scoring_func = ScoringFunc::kSigmoid;
  TopkMethod topk_method = TopkMethod::kNoauxTc;
  // Weights are divided by (their sum + 1e-20). The scaling factor is then applied by kNoauxTc only
  // (V3 normalises and scales, V2 does one or the other); without norm_topk_prob, by every method.
  bool norm_topk_prob = true;
  float routed_scaling_factor = 1;
};

/// See Backend::RoutedExperts.
inline constexpr int32_t kNotHere = -1;

/// Names operations that are asked for again and again (Backend::Repeat).
struct RepeatKey {
  int64_t part = 0;  // of the caller's work
  int64_t num_rows = 0;
  const void* x = nullptr;  // what they begin with
};

// kernels/logit_summary.h
struct LogitQuestion;
struct LogitSummary;

class Backend {
 public:
  virtual ~Backend() = default;

  /// For people: "reference", "cpu (avx2, 4 threads)".
  virtual std::string Name() const = 0;

  /// Where all arrays and weights lie that it is given. As long as the backend.
  virtual Memory& memory() { return HostMemory(); }

  /// out[t] = table[ids[t]]. table [vocab, hidden], out [ids.size(), hidden].
  /// REQUIRES: 0 <= ids[t] < vocab.
  virtual void Embed(const Matrix& table, absl::Span<const int32_t> ids, float* out) = 0;

  /// out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight. x, out [num_rows, width], weight [width].
  /// `out` may be `x`.
  virtual void RmsNorm(const float* x, int64_t num_rows, int64_t width, const float* weight,
                       float eps, float* out) = 0;

  /// out = x w^T. x [num_rows, w.cols], out [num_rows, w.rows].
  virtual void MatMul(const Matrix& w, const float* x, int64_t num_rows, float* out) = 0;

  /// y += x. [count] each.
  virtual void Add(const float* x, int64_t count, float* y) = 0;

  /// Turns the rope part of every head of q [num_rows, num_heads * q_head_dim] in place: the last
  /// qk_rope_head_dim values of a head, as interleaved pairs (2i, 2i + 1). num_rows covers the
  /// sequences' rows.
  virtual void RotateQueries(const MlaShape& shape, const RopeTable& rope,
                             absl::Span<const SequenceRows> sequences, float* q) = 0;

  /// Fills the cache for the sequences' rows. kv_a [num_rows, kv_width] is kv_a_proj_with_mqa's
  /// output: its first kv_lora_rank values are RMS-normed with norm_weight and eps, the rest
  /// rotated; the row is then stored as EncodeKvRow does.
  virtual void WriteKv(const MlaShape& shape, const RopeTable& rope, const float* norm_weight,
                       float eps, absl::Span<const SequenceRows> sequences, const KvLayout& kv,
                       const float* kv_a) = 0;

  /// Causal attention over the compressed cache (absorbed form: scores and sums in the latent
  /// space). kv_b [num_heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank]: for each head its
  /// key rows, then its value rows. q as RotateQueries leaves it, out [num_rows, num_heads *
  /// v_head_dim]. Row at position p attends to positions [0, p], which are all cached.
  virtual void MlaAttention(const MlaShape& shape, const Matrix& kv_b,
                            absl::Span<const SequenceRows> sequences, const KvLayout& kv,
                            const float* q, float* out) = 0;

  /// out = FFN(x). x, out [num_rows, hidden].
  virtual void Ffn(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out) = 0;

  /// Chooses experts. logits [num_rows, n_routed_experts]; bias [n_routed_experts] for kNoauxTc,
  /// else null. expert_ids, weights [num_rows, num_experts_per_tok]: ascending ids in a row; equal
  /// scores go to the lower id. Weights come from the unbiased scores (DeepSeek-V3,
  /// arXiv:2412.19437, section 2.1.2).
  virtual void Route(const RouterShape& shape, const float* logits, const float* bias,
                     int64_t num_rows, int32_t* expert_ids, float* weights) = 0;

  /// out[t] += sum over k of weights[t,k] * FFN_{expert_ids[t,k]}(x[t]), in ascending order of
  /// expert, in whatever order `experts` gives them: where its ids do not ascend, each product
  /// waits for its turn in num_rows * k * hidden floats. x, out [num_rows, hidden]; expert_ids,
  /// weights [num_rows, k]. An id of kNotHere adds nothing: another backend computes that expert.
  /// REQUIRES: `experts` gives those of the other ids.
  /// Errors: those of experts.Next(); `out` is then of no use.
  virtual absl::Status RoutedExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                                     const int32_t* expert_ids, const float* weights, int64_t k,
                                     float* out) = 0;

  /// Does what `ops` asks of this backend, whose errors it returns: perhaps without calling it,
  /// where it was called before with an equal key. (A card would rather be told many operations at
  /// once.) REQUIRES: calls of an equal key ask for the same operations, with the same arguments
  /// but for `sequences`, of whatever content. They ask nothing of the memory but Clear, and of
  /// sequences only these, or the same whose blocks all lie by one distance from these ones' (in
  /// another layer of a cache).
  virtual absl::Status Repeat(const RepeatKey& /*key*/,
                              absl::Span<const SequenceRows> /*sequences*/,
                              absl::FunctionRef<absl::Status()> ops) {
    return ops();
  }

  /// summaries[t] = what questions[t] asks of logits[t]. logits [num_rows, vocab], vocab > 0;
  /// questions, summaries [num_rows].
  virtual void SummarizeLogits(const float* logits, int64_t num_rows, int64_t vocab,
                               const LogitQuestion* questions, LogitSummary* summaries) = 0;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_BACKEND_H_
