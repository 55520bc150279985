#ifndef CARAVAN_KERNELS_CPU_MLA_ATTENTION_H_
#define CARAVAN_KERNELS_CPU_MLA_ATTENTION_H_

// Backend::MlaAttention on the CPU, in the absorbed form (DeepSeek-V2, arXiv:2405.04434, section
// 2.1.2): a query goes into the latent space once, q' = W_UK^T q_nope, where scores and sums are
// taken over the cache as it lies, and W_UV turns the sum into the head's output.
//
// All heads of a row share the cache, so one row is a product of many rows already: a tile of
// positions is decoded and transposed once, and scores and sums over it are register-blocked
// products (RowOps::weighted_sums). Softmax is online (arXiv:1805.02867, algorithm 3) over the
// tiles of a span of positions; spans are merged in ascending order. Tiles and spans are counted
// from position 0, so a row's result depends neither on how the prompt was cut, nor on
// block_tokens, nor on who computes which span. Scratch does not grow with the context.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/row_ops.h"

namespace caravan {

/// Queries (a row and a head) that go through together: bounds the scratch, to 68 MiB for R1.
inline constexpr int64_t kAttentionBatchQueries = 16384;

class CpuMlaAttention {
 public:
  /// Both outlive the object.
  CpuMlaAttention(const RowOps& ops, Lanes& lanes) : ops_(ops), lanes_(lanes) {}

  void Run(const MlaShape& shape, const Matrix& kv_b, absl::Span<const SequenceRows> sequences,
           const KvLayout& kv, const float* q, float* out);

 private:
  struct QueryRow {
    const SequenceRows* sequence;
    int64_t row;
    int64_t position;
  };
  /// Some rows of a sequence times some heads: what shares the decoding of the cache.
  struct Tile {
    absl::Span<const QueryRow> rows;
    int64_t num_heads;
    const float* queries;  // of the first row and head, in those of the batch
    float* sums;           // likewise

    int64_t num_rows() const { return static_cast<int64_t>(rows.size()); }
    int64_t num_queries() const { return num_rows() * num_heads; }
    int64_t num_spans() const;
    /// The first row that attends to positions of the span; positions ascend.
    int64_t FirstRowOf(int64_t span) const;
  };
  struct Call;        // the arguments of Run
  struct Batch;       // rows that go through together
  struct CachedTile;  // some positions of it
  struct State;       // of a tile's softmax

  void AbsorbQueries(const Call& call, const Batch& batch);
  void Attend(const Call& call, const Batch& batch);
  void ProjectValues(const Call& call, const Batch& batch);

  /// Fills tiles_.
  void MakeTiles(const Call& call, const Batch& batch, int64_t heads_per_tile);
  /// Attend for few tiles: their spans are shared out, in waves of a bounded number of states.
  void AttendInWaves(const Call& call, int64_t num_spans, int64_t wanted_items, int64_t work);
  /// Sets `state` to that of the span alone, for the rows that reach it.
  void AttendToSpan(const Call& call, const Tile& tile, int64_t span, const State& state,
                    LaneScratch& scratch) const;
  void AttendToTile(const Call& call, const Tile& tile, int64_t row, const CachedTile& cached,
                    int64_t visible, const State& state, float* scores) const;
  /// Adds the state of `span` to that of all spans before it.
  void MergeSpan(const Call& call, const Tile& tile, int64_t span, const State& from,
                 const State& to) const;
  void DivideByTotals(const Call& call, const Tile& tile, const State& state) const;

  const RowOps& ops_;
  Lanes& lanes_;
  std::vector<QueryRow> rows_;
  std::vector<Tile> tiles_;
  ScratchBuffer<float> queries_;
  ScratchBuffer<float> sums_;
  ScratchBuffer<float> spans_;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_MLA_ATTENTION_H_
