#include "kernels/reference/reference_backend.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/kv_rows.h"
#include "kernels/logit_summary.h"
#include "kernels/quant/dequantize.h"
#include "kernels/reference/reference_router.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

using Vector = std::vector<double>;

/// w[row], exactly.
Vector RowOf(const Matrix& w, int64_t row) {
  Vector values(w.cols);
  const int64_t row_bytes = DTypeBytes(w.dtype, w.cols);
  const std::byte* bytes = w.data + row * row_bytes;
  std::vector<std::byte> untiled;
  if (w.layout == MatrixLayout::kTiled16) {
    untiled.resize(row_bytes);
    UntileRow(w, row, 0, w.cols, untiled.data());
    bytes = untiled.data();
  }
  DequantizeRow(w.dtype, bytes, w.cols, values.data());
  if (w.dtype != DType::kF8E4M3 || w.scale_inv == nullptr) return values;
  const float* scales = w.scale_inv + row / kFp8BlockSize * Fp8Blocks(w.cols);
  for (int64_t c = 0; c < w.cols; ++c) values[c] *= scales[c / kFp8BlockSize];
  return values;
}

/// w x for rows [first_row, first_row + num_rows) of w. x [w.cols].
template <typename T>
Vector Multiply(const Matrix& w, int64_t first_row, int64_t num_rows, const T* x) {
  Vector y(num_rows);
  for (int64_t r = 0; r < num_rows; ++r) {
    const Vector row = RowOf(w, first_row + r);
    for (int64_t c = 0; c < w.cols; ++c) y[r] += row[c] * x[c];
  }
  return y;
}

/// x / sqrt(mean(x^2) + eps) * weight (RMSNorm, arXiv:1910.07467, section 4).
Vector Normed(const float* x, int64_t width, const float* weight, float eps) {
  double sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += static_cast<double>(x[i]) * x[i];
  const double root = std::sqrt(sum / static_cast<double>(width) + eps);
  Vector y(width);
  for (int64_t i = 0; i < width; ++i) y[i] = x[i] / root * weight[i];
  return y;
}

/// x [2 * inv_freq.size()] with pair (2i, 2i + 1), as a complex number, times amplitude *
/// exp(i * position * inv_freq[i]) (RoFormer, arXiv:2104.09864, section 3.4.2).
Vector Rotated(const RopeTable& rope, int64_t position, const float* x) {
  Vector y(2 * rope.inv_freq.size());
  for (size_t i = 0; i < rope.inv_freq.size(); ++i) {
    const double angle = static_cast<double>(position) * rope.inv_freq[i];
    const double c = rope.amplitude * std::cos(angle);
    const double s = rope.amplitude * std::sin(angle);
    y[2 * i] = x[2 * i] * c - x[2 * i + 1] * s;
    y[2 * i + 1] = x[2 * i] * s + x[2 * i + 1] * c;
  }
  return y;
}

/// down(silu(gate(x)) * up(x)) (SwiGLU, arXiv:2002.05202, section 2).
Vector FeedForward(const FfnWeights& ffn, const float* x) {
  Vector inner = Multiply(ffn.gate, 0, ffn.gate.rows, x);
  const Vector up = Multiply(ffn.up, 0, ffn.up.rows, x);
  for (size_t i = 0; i < inner.size(); ++i) inner[i] *= up[i] / (1 + std::exp(-inner[i]));
  return Multiply(ffn.down, 0, ffn.down.rows, inner.data());
}

/// The cached values of a position, exactly.
Vector CachedRow(const MlaShape& shape, const KvLayout& kv, const SequenceRows& sequence,
                 int64_t position) {
  Vector values(shape.kv_width());
  DequantizeRow(kv.dtype, KvRow(shape, kv, sequence, position), shape.kv_width(), values.data());
  return values;
}

class ReferenceBackend : public Backend {
 public:
  std::string Name() const override { return "reference"; }

  void Embed(const Matrix& table, absl::Span<const int32_t> ids, float* out) override {
    for (const int32_t id : ids) {
      CARAVAN_CHECK(id >= 0 && id < table.rows);
      Store(RowOf(table, id), out);
      out += table.cols;
    }
  }

  void RmsNorm(const float* x, int64_t num_rows, int64_t width, const float* weight, float eps,
               float* out) override {
    for (int64_t t = 0; t < num_rows; ++t) {
      Store(Normed(x + t * width, width, weight, eps), out + t * width);
    }
  }

  void MatMul(const Matrix& w, const float* x, int64_t num_rows, float* out) override {
    for (int64_t t = 0; t < num_rows; ++t) {
      Store(Multiply(w, 0, w.rows, x + t * w.cols), out + t * w.rows);
    }
  }

  void Add(const float* x, int64_t count, float* y) override {
    for (int64_t i = 0; i < count; ++i) y[i] += x[i];
  }

  void RotateQueries(const MlaShape& shape, const RopeTable& rope,
                     absl::Span<const SequenceRows> sequences, float* q) override {
    for (const SequenceRows& sequence : sequences) {
      for (int64_t i = 0; i < sequence.num_rows; ++i) {
        for (int64_t head = 0; head < shape.num_heads; ++head) {
          float* x = q + ((sequence.first_row + i) * shape.num_heads + head) * shape.q_head_dim() +
                     shape.qk_nope_head_dim;
          Store(Rotated(rope, sequence.first_position + i, x), x);
        }
      }
    }
  }

  void WriteKv(const MlaShape& shape, const RopeTable& rope, const float* norm_weight, float eps,
               absl::Span<const SequenceRows> sequences, const KvLayout& kv,
               const float* kv_a) override {
    std::vector<float> row(shape.kv_width());
    for (const SequenceRows& sequence : sequences) {
      for (int64_t i = 0; i < sequence.num_rows; ++i) {
        const int64_t position = sequence.first_position + i;
        const float* source = kv_a + (sequence.first_row + i) * shape.kv_width();
        Store(Normed(source, shape.kv_lora_rank, norm_weight, eps), row.data());
        Store(Rotated(rope, position, source + shape.kv_lora_rank),
              row.data() + shape.kv_lora_rank);
        EncodeKvRow(kv.dtype, row.data(), shape.kv_width(), KvRow(shape, kv, sequence, position));
      }
    }
  }

  // DeepSeek-V2, arXiv:2405.04434, section 2.1.2 and 2.1.3: every head's keys [W_UK c; k_rope] and
  // values W_UV c are built from the cached latents c, then o = sum softmax(q k^T * scale) v.
  void MlaAttention(const MlaShape& shape, const Matrix& kv_b,
                    absl::Span<const SequenceRows> sequences, const KvLayout& kv, const float* q,
                    float* out) override {
    for (const SequenceRows& sequence : sequences) {
      for (int64_t head = 0; head < shape.num_heads; ++head) {
        AttendWithHead(shape, kv_b, sequence, kv, head, q, out);
      }
    }
  }

  void Ffn(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out) override {
    for (int64_t t = 0; t < num_rows; ++t) {
      Store(FeedForward(ffn, x + t * ffn.gate.cols), out + t * ffn.down.rows);
    }
  }

  void Route(const RouterShape& shape, const float* logits, const float* bias, int64_t num_rows,
             int32_t* expert_ids, float* weights) override {
    for (int64_t t = 0; t < num_rows; ++t) {
      ReferenceRouteRow(shape, logits + t * shape.n_routed_experts, bias,
                        expert_ids + t * shape.num_experts_per_tok,
                        weights + t * shape.num_experts_per_tok);
    }
  }

  // DeepSeek-V3, arXiv:2412.19437, section 2.1.2, equation 12.
  absl::Status RoutedExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                             const int32_t* expert_ids, const float* weights, int64_t k,
                             float* out) override {
    // By row; of each the products by expert, which may come in any order.
    std::vector<std::multimap<int32_t, Vector>> products(num_rows);
    while (true) {
      CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const LoadedExpert> batch, experts.Next());
      if (batch.empty()) break;
      for (const LoadedExpert& expert : batch) {
        for (int64_t i = 0; i < num_rows * k; ++i) {
          if (expert_ids[i] != expert.id) continue;
          Vector y = FeedForward(expert.weights, x + i / k * expert.weights.gate.cols);
          for (double& value : y) value *= weights[i];
          products[i / k].emplace(expert.id, std::move(y));
        }
      }
    }
    for (int64_t t = 0; t < num_rows; ++t) {
      CARAVAN_CHECK(static_cast<int64_t>(products[t].size()) ==
                    k - std::count(expert_ids + t * k, expert_ids + (t + 1) * k, kNotHere));
      Vector sum;
      for (const auto& [expert, y] : products[t]) {
        sum.resize(y.size());
        for (size_t c = 0; c < y.size(); ++c) sum[c] += y[c];
      }
      float* const row = out + t * static_cast<int64_t>(sum.size());
      for (size_t c = 0; c < sum.size(); ++c) row[c] = static_cast<float>(row[c] + sum[c]);
    }
    return absl::OkStatus();
  }

  void SummarizeLogits(const float* logits, int64_t num_rows, int64_t vocab,
                       const LogitQuestion* questions, LogitSummary* summaries) override {
    for (int64_t t = 0; t < num_rows; ++t) {
      summaries[t] =
          SummarizeLogitRow(absl::MakeConstSpan(logits + t * vocab, vocab), questions[t]);
    }
  }

 private:
  static void Store(const Vector& values, float* out) {
    for (const double value : values) *out++ = static_cast<float>(value);
  }

  static void AttendWithHead(const MlaShape& shape, const Matrix& kv_b,
                             const SequenceRows& sequence, const KvLayout& kv, int64_t head,
                             const float* q, float* out) {
    const int64_t nope = shape.qk_nope_head_dim;
    const int64_t rope = shape.qk_rope_head_dim;
    const int64_t first_key_row = head * (nope + shape.v_head_dim);
    const int64_t num_positions = sequence.first_position + sequence.num_rows;
    std::vector<Vector> keys(num_positions);
    std::vector<Vector> values(num_positions);
    for (int64_t p = 0; p < num_positions; ++p) {
      const Vector cached = CachedRow(shape, kv, sequence, p);
      keys[p] = Multiply(kv_b, first_key_row, nope, cached.data());
      keys[p].insert(keys[p].end(), cached.begin() + shape.kv_lora_rank, cached.end());
      values[p] = Multiply(kv_b, first_key_row + nope, shape.v_head_dim, cached.data());
    }
    for (int64_t i = 0; i < sequence.num_rows; ++i) {
      const int64_t row = sequence.first_row + i;
      const float* query = q + (row * shape.num_heads + head) * shape.q_head_dim();
      Vector scores(sequence.first_position + i + 1);
      double max = -INFINITY;
      for (size_t p = 0; p < scores.size(); ++p) {
        for (int64_t d = 0; d < nope + rope; ++d) scores[p] += query[d] * keys[p][d];
        scores[p] *= shape.softmax_scale;
        max = std::max(max, scores[p]);
      }
      Vector sum(shape.v_head_dim);
      double total = 0;
      for (size_t p = 0; p < scores.size(); ++p) {
        const double weight = std::exp(scores[p] - max);
        total += weight;
        for (int64_t d = 0; d < shape.v_head_dim; ++d) sum[d] += weight * values[p][d];
      }
      for (double& value : sum) value /= total;
      Store(sum, out + (row * shape.num_heads + head) * shape.v_head_dim);
    }
  }
};

}  // namespace

std::unique_ptr<Backend> MakeReferenceBackend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace caravan
