#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/int_math.h"
#include "base/status_macros.h"
#include "kernels/cpu/expert_ffn.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/mla_attention.h"
#include "kernels/cpu/router.h"
#include "kernels/cpu/tile_product.h"
#include "kernels/cpu/weight_tile.h"
#include "kernels/kv_rows.h"
#include "kernels/logit_summary.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

constexpr int kMaxThreads = 1024;

// What storing a cached value costs, in multiply-adds; quantizing searches for the best scale.
constexpr int64_t EncodeWork(DType dtype) { return dtype == DType::kQ8_0 ? 128 : 20; }

class CpuBackend : public Backend {
 public:
  CpuBackend(const RowOps& ops, const TileOps& tile_ops, int num_threads)
      : ops_(ops),
        tile_ops_(tile_ops),
        lanes_(num_threads),
        attention_(ops, lanes_),
        ffn_({ops, tile_ops}, lanes_) {}

  std::string Name() const override {
    return absl::StrCat("cpu (", ops_.name, ", ", lanes_.num_threads(),
                        lanes_.num_threads() == 1 ? " thread)" : " threads)");
  }

  void Embed(const Matrix& table, absl::Span<const int32_t> ids, float* out) override {
    for (const int32_t id : ids) {
      CARAVAN_CHECK(id >= 0 && id < table.rows);
      DecodeRow(ops_, table, id, 0, table.cols, out);
      out += table.cols;
    }
  }

  void RmsNorm(const float* x, int64_t num_rows, int64_t width, const float* weight, float eps,
               float* out) override {
    for (int64_t t = 0; t < num_rows; ++t) {
      NormRow(x + t * width, width, weight, eps, out + t * width);
    }
  }

  void MatMul(const Matrix& w, const float* x, int64_t num_rows, float* out) override {
    if (num_rows == 0) return;
    ActivationRows rows;
    if (TakesBlocks(w)) {
      x_blocks_.Quantize(tile_ops_, lanes_, x, num_rows, w.cols);
      block_inputs_.resize(num_rows);
      for (int64_t t = 0; t < num_rows; ++t) block_inputs_[t] = x_blocks_.Row(t);
      rows.blocks = block_inputs_;
    } else {
      inputs_.resize(num_rows);
      for (int64_t t = 0; t < num_rows; ++t) inputs_[t] = x + t * w.cols;
      rows.floats = inputs_;
    }
    const int64_t item_tiles = TilesPerItem(w, 1, num_rows);
    lanes_.ForEach(CeilDiv(Tiles(w.rows), item_tiles), ProductWork(w.rows * w.cols, num_rows),
                   [&](int64_t item, LaneScratch& scratch) {
                     MultiplyTiles({ops_, tile_ops_}, w, item * item_tiles, item_tiles, rows,
                                   scratch, out + item * item_tiles * kTileRows, w.rows);
                   });
  }

  void Add(const float* x, int64_t count, float* y) override { ops_.axpy(1, x, count, y); }

  void RotateQueries(const MlaShape& shape, const RopeTable& rope,
                     absl::Span<const SequenceRows> sequences, float* q) override {
    angles_.resize(2 * rope.inv_freq.size());
    for (const SequenceRows& sequence : sequences) {
      for (int64_t i = 0; i < sequence.num_rows; ++i) {
        SetAngles(rope, sequence.first_position + i, angles_.data());
        float* row = q + (sequence.first_row + i) * shape.num_heads * shape.q_head_dim();
        for (int64_t head = 0; head < shape.num_heads; ++head) {
          float* pairs = row + head * shape.q_head_dim() + shape.qk_nope_head_dim;
          Rotate(angles_.data(), shape.qk_rope_head_dim / 2, pairs, pairs);
        }
      }
    }
  }

  void WriteKv(const MlaShape& shape, const RopeTable& rope, const float* norm_weight, float eps,
               absl::Span<const SequenceRows> sequences, const KvLayout& kv,
               const float* kv_a) override {
    for (const SequenceRows& sequence : sequences) {
      const int64_t work = sequence.num_rows * shape.kv_width() * EncodeWork(kv.dtype);
      lanes_.ForEach(sequence.num_rows, work, [&](int64_t i, LaneScratch& scratch) {
        const int64_t position = sequence.first_position + i;
        const float* source = kv_a + (sequence.first_row + i) * shape.kv_width();
        float* const row = scratch.floats[0].Get(shape.kv_width());
        float* const angles = scratch.floats[1].Get(shape.qk_rope_head_dim);
        NormRow(source, shape.kv_lora_rank, norm_weight, eps, row);
        SetAngles(rope, position, angles);
        Rotate(angles, shape.qk_rope_head_dim / 2, source + shape.kv_lora_rank,
               row + shape.kv_lora_rank);
        EncodeKvRow(kv.dtype, row, shape.kv_width(), KvRow(shape, kv, sequence, position));
      });
    }
  }

  void MlaAttention(const MlaShape& shape, const Matrix& kv_b,
                    absl::Span<const SequenceRows> sequences, const KvLayout& kv, const float* q,
                    float* out) override {
    attention_.Run(shape, kv_b, sequences, kv, q, out);
  }

  void Ffn(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out) override {
    ffn_.RunDense(ffn, x, num_rows, out);
  }

  void Route(const RouterShape& shape, const float* logits, const float* bias, int64_t num_rows,
             int32_t* expert_ids, float* weights) override {
    for (int64_t t = 0; t < num_rows; ++t) {
      router_.Route(shape, logits + t * shape.n_routed_experts, bias,
                    expert_ids + t * shape.num_experts_per_tok,
                    weights + t * shape.num_experts_per_tok);
    }
  }

  absl::Status RoutedExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                             const int32_t* expert_ids, const float* weights, int64_t k,
                             float* out) override {
    return ffn_.RunExperts(experts, x, num_rows, expert_ids, weights, k, out);
  }

  // Whoever has the logits in the host's memory reads them there, so this need not be quick.
  void SummarizeLogits(const float* logits, int64_t num_rows, int64_t vocab,
                       const LogitQuestion* questions, LogitSummary* summaries) override {
    for (int64_t t = 0; t < num_rows; ++t) {
      summaries[t] =
          SummarizeLogitRow(absl::MakeConstSpan(logits + t * vocab, vocab), questions[t]);
    }
  }

 private:
  void NormRow(const float* x, int64_t width, const float* weight, float eps, float* out) const {
    const float mean = ops_.sum_squares(x, width) / static_cast<float>(width);
    ops_.scale_by(x, 1 / std::sqrt(mean + eps), weight, width, out);
  }

  /// angles [inv_freq.size(), 2]: of each pair the cosine and the sine. In double: in float,
  /// position 100,000 would be off by 0.004.
  static void SetAngles(const RopeTable& rope, int64_t position, float* angles) {
    for (size_t i = 0; i < rope.inv_freq.size(); ++i) {
      const double angle = static_cast<double>(position) * rope.inv_freq[i];
      angles[2 * i] = static_cast<float>(rope.amplitude * std::cos(angle));
      angles[2 * i + 1] = static_cast<float>(rope.amplitude * std::sin(angle));
    }
  }

  /// Turns the pairs of x by their angles. out may be x.
  static void Rotate(const float* angles, int64_t num_pairs, const float* x, float* out) {
    for (int64_t i = 0; i < num_pairs; ++i) {
      const float cosine = angles[2 * i];
      const float sine = angles[2 * i + 1];
      const float real = x[2 * i];
      const float imaginary = x[2 * i + 1];
      out[2 * i] = real * cosine - imaginary * sine;
      out[2 * i + 1] = real * sine + imaginary * cosine;
    }
  }

  const RowOps& ops_;
  const TileOps& tile_ops_;
  Lanes lanes_;
  CpuMlaAttention attention_;
  CpuExpertFfn ffn_;
  Router router_;
  std::vector<const float*> inputs_;
  ActivationBlocks x_blocks_;
  std::vector<const ActivationBlock*> block_inputs_;
  std::vector<float> angles_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options) {
  if (options.num_threads < 1 || options.num_threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("number of threads: ", options.num_threads, " is not in [1, 1024]"));
  }
  CARAVAN_ASSIGN_OR_RETURN(const RowOps* ops, RowOpsFor(options.isa));
  CARAVAN_ASSIGN_OR_RETURN(const TileOps* tile_ops, TileOpsFor(options.isa));
  return std::make_unique<CpuBackend>(*ops, *tile_ops, options.num_threads);
}

}  // namespace caravan
