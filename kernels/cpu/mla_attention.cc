#include "kernels/cpu/mla_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/int_math.h"
#include "kernels/cpu/weight_tile.h"
#include "kernels/kv_rows.h"

namespace caravan {
namespace {

// Queries of a tile: enough to make its products outweigh the decoding of the cache, and few enough
// that what belongs to them (4.6 KB each for R1) stays in the second-level cache.
constexpr int64_t kTileQueries = 128;
// The fewest heads that a tile is cut down to for the sake of more threads.
constexpr int64_t kFewestHeads = 8;
// Positions that are decoded together, whose rows (576 floats each) stay in the second-level cache
// twice; and those whose softmax is online. Both are part of the order of sums.
constexpr int64_t kTilePositions = 64;
constexpr int64_t kSpanPositions = 256;
// Scores are taken for a multiple of this, so that products have no tails.
constexpr int64_t kScoreStep = 16;

// Rows of kv_b that are decoded before a batch's queries pass them, where these are more than a
// few: each pass reads and writes every query of the head.
constexpr int64_t kAbsorbedRows = 96;
constexpr int64_t kFewRows = 8;
// Floats between the rows of a batch, so that rows of a power of two bytes share no cache sets.
constexpr int64_t kRowPadding = 16;

}  // namespace

struct CpuMlaAttention::Call {
  const MlaShape& shape;
  const Matrix& kv_b;
  const KvLayout& kv;
  RowOps::Decode decode;  // of the cache
  const float* q;
  float* out;

  // Floats from a row of Batch::queries, or of its sums, to the next.
  int64_t query_stride() const { return shape.num_heads * shape.kv_width() + kRowPadding; }
  int64_t sum_stride() const { return shape.num_heads * shape.kv_lora_rank + kRowPadding; }
  int64_t FirstKeyRow(int64_t head) const {
    return head * (shape.qk_nope_head_dim + shape.v_head_dim);
  }
  const float* Query(int64_t row, int64_t head) const {
    return q + (row * shape.num_heads + head) * shape.q_head_dim();
  }
};

// Query (i, h) is that of rows[i] and head h; it lies at i * stride + h * its width.
struct CpuMlaAttention::Batch {
  absl::Span<const QueryRow> rows;
  float* queries;  // [kv_width] each: in the latent space, then the rope part
  float* sums;     // [kv_lora_rank] each: at last divided by their totals

  int64_t num_rows() const { return static_cast<int64_t>(rows.size()); }
};

// Positions of a cache as floats.
struct CpuMlaAttention::CachedTile {
  const float** rows;     // [kTilePositions] of [kv_width]
  const float** columns;  // [kv_width] of [kTilePositions]
};

// Of a tile's softmax over some positions. Query i * num_heads + h is that of row i and head h.
struct CpuMlaAttention::State {
  float* sums;  // [kv_lora_rank] of query (i, h) at i * row_stride + h * kv_lora_rank
  int64_t row_stride;
  float* maxima;  // [queries] of the scaled scores
  float* totals;  // [queries] of the exponentials
};

int64_t CpuMlaAttention::Tile::num_spans() const {
  return rows.back().position / kSpanPositions + 1;
}

int64_t CpuMlaAttention::Tile::FirstRowOf(int64_t span) const {
  int64_t i = 0;
  while (rows[i].position < span * kSpanPositions) ++i;
  return i;
}

void CpuMlaAttention::Run(const MlaShape& shape, const Matrix& kv_b,
                          absl::Span<const SequenceRows> sequences, const KvLayout& kv,
                          const float* q, float* out) {
  rows_.clear();
  for (const SequenceRows& sequence : sequences) {
    for (int64_t i = 0; i < sequence.num_rows; ++i) {
      rows_.push_back({&sequence, sequence.first_row + i, sequence.first_position + i});
    }
  }
  const int64_t num_rows = static_cast<int64_t>(rows_.size());
  const Call call = {shape, kv_b, kv, DecoderOf(ops_, kv.dtype), q, out};
  const int64_t batch_rows = std::max<int64_t>(1, kAttentionBatchQueries / shape.num_heads);
  for (int64_t first = 0; first < num_rows; first += batch_rows) {
    Batch batch;
    batch.rows = absl::MakeConstSpan(rows_).subspan(first, batch_rows);
    batch.queries = queries_.Get(batch.num_rows() * call.query_stride());
    batch.sums = sums_.Get(batch.num_rows() * call.sum_stride());
    AbsorbQueries(call, batch);
    Attend(call, batch);
    ProjectValues(call, batch);
  }
}

void CpuMlaAttention::AbsorbQueries(const Call& call, const Batch& batch) {
  const MlaShape& shape = call.shape;
  const int64_t latent = shape.kv_lora_rank;
  const int64_t query_stride = call.query_stride();
  const int64_t decoded_rows = batch.num_rows() < kFewRows ? kTileRows : kAbsorbedRows;
  const int64_t work =
      ProductWork(shape.num_heads * shape.qk_nope_head_dim * latent, batch.num_rows());
  lanes_.ForEach(shape.num_heads, work, [&](int64_t head, LaneScratch& scratch) {
    float* decoded = scratch.weights.Get(decoded_rows * latent);
    const float** keys = scratch.pointers[0].Get(decoded_rows);
    float* const queries = batch.queries + head * shape.kv_width();
    for (int64_t i = 0; i < batch.num_rows(); ++i) {
      float* const query = queries + i * query_stride;
      std::fill_n(query, latent, 0.0f);
      std::copy_n(call.Query(batch.rows[i].row, head) + shape.qk_nope_head_dim,
                  shape.qk_rope_head_dim, query + latent);
    }
    for (int64_t first = 0; first < shape.qk_nope_head_dim; first += decoded_rows) {
      const int64_t count = std::min(decoded_rows, shape.qk_nope_head_dim - first);
      for (int64_t r = 0; r < count; ++r) {
        keys[r] = decoded + r * latent;
        DecodeRow(ops_, call.kv_b, call.FirstKeyRow(head) + first + r, 0, latent,
                  decoded + r * latent);
      }
      // Rows that follow each other in q go together.
      for (int64_t begin = 0, end; begin < batch.num_rows(); begin = end) {
        const int64_t row = batch.rows[begin].row;
        end = begin + 1;
        while (end < batch.num_rows() && batch.rows[end].row == row + end - begin) ++end;
        ops_.weighted_sums(call.Query(row, head) + first, shape.num_heads * shape.q_head_dim(),
                           keys, count, latent, queries + begin * query_stride, query_stride,
                           end - begin);
      }
    }
  });
}

void CpuMlaAttention::MakeTiles(const Call& call, const Batch& batch, int64_t heads_per_tile) {
  const MlaShape& shape = call.shape;
  const int64_t rows_per_tile = std::max<int64_t>(1, kTileQueries / shape.num_heads);
  tiles_.clear();
  for (int64_t begin = 0, end; begin < batch.num_rows(); begin = end) {
    end = begin + 1;
    while (end < batch.num_rows() && end - begin < rows_per_tile &&
           batch.rows[end].sequence == batch.rows[begin].sequence) {
      ++end;
    }
    for (int64_t head = 0; head < shape.num_heads; head += heads_per_tile) {
      tiles_.push_back({batch.rows.subspan(begin, end - begin),
                        std::min(heads_per_tile, shape.num_heads - head),
                        batch.queries + begin * call.query_stride() + head * shape.kv_width(),
                        batch.sums + begin * call.sum_stride() + head * shape.kv_lora_rank});
    }
  }
}

void CpuMlaAttention::Attend(const Call& call, const Batch& batch) {
  const MlaShape& shape = call.shape;
  int64_t num_scores = 0;
  int64_t last_position = 0;
  for (const QueryRow& row : batch.rows) {
    num_scores += shape.num_heads * (row.position + 1);
    last_position = std::max(last_position, row.position);
  }
  const int64_t work = num_scores * (shape.kv_width() + shape.kv_lora_rank);
  const int64_t num_spans = last_position / kSpanPositions + 1;
  const int64_t wanted_items = 2 * lanes_.num_threads();

  // Heads are cut further where rows and spans alone make too few items.
  int64_t heads = std::min(shape.num_heads, kTileQueries);
  MakeTiles(call, batch, heads);
  while (std::ssize(tiles_) * num_spans < wanted_items && heads > kFewestHeads) {
    heads = std::max(kFewestHeads, (heads + 1) / 2);
    MakeTiles(call, batch, heads);
  }
  if (std::ssize(tiles_) < wanted_items && num_spans > 1) {
    AttendInWaves(call, num_spans, wanted_items, work);
    return;
  }
  lanes_.ForEach(std::ssize(tiles_), work, [&](int64_t item, LaneScratch& scratch) {
    const Tile& tile = tiles_[static_cast<size_t>(item)];
    const int64_t queries = tile.num_queries();
    float* const numbers = scratch.floats[3].Get(4 * queries);
    const State all = {tile.sums, call.sum_stride(), numbers, numbers + queries};
    const State span_state = {scratch.floats[2].Get(queries * shape.kv_lora_rank),
                              tile.num_heads * shape.kv_lora_rank, numbers + 2 * queries,
                              numbers + 3 * queries};
    AttendToSpan(call, tile, 0, all, scratch);
    for (int64_t span = 1; span < tile.num_spans(); ++span) {
      AttendToSpan(call, tile, span, span_state, scratch);
      MergeSpan(call, tile, span, span_state, all);
    }
    DivideByTotals(call, tile, all);
  });
}

void CpuMlaAttention::AttendInWaves(const Call& call, int64_t num_spans, int64_t wanted_items,
                                    int64_t work) {
  const MlaShape& shape = call.shape;
  const int64_t num_tiles = std::ssize(tiles_);
  const int64_t wave_spans = std::min(CeilDiv(wanted_items, num_tiles), num_spans);
  int64_t most_queries = 0;
  for (const Tile& tile : tiles_) most_queries = std::max(most_queries, tile.num_queries());
  // A state for each span of a wave, and the numbers of each tile's state of all spans.
  const int64_t state_floats = most_queries * (shape.kv_lora_rank + 2);
  float* const states = spans_.Get(num_tiles * (wave_spans * state_floats + 2 * most_queries));
  float* const numbers = states + num_tiles * wave_spans * state_floats;
  const auto state_of_all = [&](int64_t tile) -> State {
    float* const maxima = numbers + tile * 2 * most_queries;
    return {tiles_[static_cast<size_t>(tile)].sums, call.sum_stride(), maxima,
            maxima + most_queries};
  };
  const auto state_of_span = [&](int64_t tile, int64_t index) -> State {
    float* const sums = states + (tile * wave_spans + index) * state_floats;
    float* const maxima = sums + most_queries * shape.kv_lora_rank;
    return {sums, tiles_[static_cast<size_t>(tile)].num_heads * shape.kv_lora_rank, maxima,
            maxima + most_queries};
  };

  for (int64_t first = 0; first < num_spans; first += wave_spans) {
    lanes_.ForEach(num_tiles * wave_spans, work * wave_spans / num_spans,
                   [&](int64_t item, LaneScratch& scratch) {
                     const int64_t t = item % num_tiles;
                     const int64_t index = item / num_tiles;
                     const Tile& tile = tiles_[static_cast<size_t>(t)];
                     if (first + index >= tile.num_spans()) return;
                     AttendToSpan(call, tile, first + index,
                                  first + index == 0 ? state_of_all(t) : state_of_span(t, index),
                                  scratch);
                   });
    const int64_t merge_work = num_tiles * wave_spans * state_floats;
    lanes_.ForEach(num_tiles, merge_work, [&](int64_t t, LaneScratch&) {
      const Tile& tile = tiles_[static_cast<size_t>(t)];
      for (int64_t index = 0; index < wave_spans; ++index) {
        const int64_t span = first + index;
        if (span == 0 || span >= tile.num_spans()) continue;
        MergeSpan(call, tile, span, state_of_span(t, index), state_of_all(t));
      }
      if (first + wave_spans >= num_spans) DivideByTotals(call, tile, state_of_all(t));
    });
  }
}

void CpuMlaAttention::AttendToSpan(const Call& call, const Tile& tile, int64_t span,
                                   const State& state, LaneScratch& scratch) const {
  const MlaShape& shape = call.shape;
  const int64_t width = shape.kv_width();
  const int64_t first_row = tile.FirstRowOf(span);
  for (int64_t i = first_row; i < tile.num_rows(); ++i) {
    std::fill_n(state.sums + i * state.row_stride, tile.num_heads * shape.kv_lora_rank, 0.0f);
  }
  const int64_t first_query = first_row * tile.num_heads;
  const int64_t num_queries = tile.num_queries() - first_query;
  std::fill_n(state.maxima + first_query, num_queries, -std::numeric_limits<float>::infinity());
  std::fill_n(state.totals + first_query, num_queries, 0.0f);

  CachedTile cached;
  cached.rows = scratch.pointers[0].Get(kTilePositions);
  cached.columns = scratch.pointers[1].Get(width);
  float* const transposed = scratch.floats[0].Get(width * kTilePositions);
  for (int64_t c = 0; c < width; ++c) cached.columns[c] = transposed + c * kTilePositions;
  float* const decoded = scratch.weights.Get(kTilePositions * width);
  float* const scores = scratch.floats[1].Get(tile.num_heads * kTilePositions);

  const SequenceRows& sequence = *tile.rows.front().sequence;
  const int64_t end = std::min((span + 1) * kSpanPositions, tile.rows.back().position + 1);
  for (int64_t first = span * kSpanPositions; first < end; first += kTilePositions) {
    const int64_t count = std::min(kTilePositions, end - first);
    for (int64_t p = 0; p < count; ++p) {
      const std::byte* const row = KvRow(shape, call.kv, sequence, first + p);
      if (call.kv.dtype == DType::kF32) {
        cached.rows[p] = reinterpret_cast<const float*>(row);
      } else {
        call.decode(row, width, 1, decoded + p * width);
        cached.rows[p] = decoded + p * width;
      }
    }
    // The last row stands in for what is missing to a whole step; nobody looks at its scores.
    const int64_t padded = RoundUp(count, kScoreStep);
    std::fill(cached.rows + count, cached.rows + padded, cached.rows[count - 1]);
    ops_.transpose(cached.rows, padded, width, transposed, kTilePositions);
    for (int64_t i = first_row; i < tile.num_rows(); ++i) {
      const int64_t visible = std::min(count, tile.rows[i].position + 1 - first);
      if (visible > 0) AttendToTile(call, tile, i, cached, visible, state, scores);
    }
  }
}

void CpuMlaAttention::AttendToTile(const Call& call, const Tile& tile, int64_t row,
                                   const CachedTile& cached, int64_t visible, const State& state,
                                   float* scores) const {
  const MlaShape& shape = call.shape;
  const int64_t width = shape.kv_width();
  const int64_t latent = shape.kv_lora_rank;
  const int64_t heads = tile.num_heads;
  std::fill_n(scores, heads * kTilePositions, 0.0f);
  ops_.weighted_sums(tile.queries + row * call.query_stride(), width, cached.columns, width,
                     RoundUp(visible, kScoreStep), scores, kTilePositions, heads);
  float* const sums = state.sums + row * state.row_stride;
  for (int64_t h = 0; h < heads; ++h) {
    float* const head_scores = scores + h * kTilePositions;
    float& max = state.maxima[row * heads + h];
    float& total = state.totals[row * heads + h];
    // Multiplying rounds in order, so the largest score gives the largest product.
    const float tile_max = ops_.max(head_scores, visible) * shape.softmax_scale;
    if (tile_max > max) {
      if (total > 0) {
        const float correction = std::exp(max - tile_max);
        ops_.scale(correction, latent, sums + h * latent);
        total *= correction;
      }
      max = tile_max;
    }
    total += ops_.exp_of_differences(shape.softmax_scale, max, visible, head_scores);
  }
  ops_.weighted_sums(scores, kTilePositions, cached.rows, visible, latent, sums, latent, heads);
}

void CpuMlaAttention::MergeSpan(const Call& call, const Tile& tile, int64_t span, const State& from,
                                const State& to) const {
  const int64_t latent = call.shape.kv_lora_rank;
  for (int64_t i = tile.FirstRowOf(span); i < tile.num_rows(); ++i) {
    for (int64_t h = 0; h < tile.num_heads; ++h) {
      const int64_t query = i * tile.num_heads + h;
      const float max = std::max(to.maxima[query], from.maxima[query]);
      const float old_factor = std::exp(to.maxima[query] - max);
      const float new_factor = std::exp(from.maxima[query] - max);
      float* const sums = to.sums + i * to.row_stride + h * latent;
      ops_.scale(old_factor, latent, sums);
      ops_.axpy(new_factor, from.sums + i * from.row_stride + h * latent, latent, sums);
      to.totals[query] = to.totals[query] * old_factor + from.totals[query] * new_factor;
      to.maxima[query] = max;
    }
  }
}

void CpuMlaAttention::DivideByTotals(const Call& call, const Tile& tile, const State& state) const {
  const int64_t latent = call.shape.kv_lora_rank;
  for (int64_t i = 0; i < tile.num_rows(); ++i) {
    for (int64_t h = 0; h < tile.num_heads; ++h) {
      ops_.scale(1 / state.totals[i * tile.num_heads + h], latent,
                 state.sums + i * state.row_stride + h * latent);
    }
  }
}

void CpuMlaAttention::ProjectValues(const Call& call, const Batch& batch) {
  const MlaShape& shape = call.shape;
  const int64_t latent = shape.kv_lora_rank;
  const int64_t num_rows = batch.num_rows();
  const int64_t work = ProductWork(shape.num_heads * shape.v_head_dim * latent, num_rows);
  lanes_.ForEach(shape.num_heads, work, [&](int64_t head, LaneScratch& scratch) {
    const float** sums = scratch.pointers[1].Get(num_rows);
    float* values = scratch.floats[3].Get(num_rows * kTileRows);
    for (int64_t i = 0; i < num_rows; ++i) {
      sums[i] = batch.sums + i * call.sum_stride() + head * latent;
    }
    const int64_t first_value_row = call.FirstKeyRow(head) + shape.qk_nope_head_dim;
    for (int64_t first = 0; first < shape.v_head_dim; first += kTileRows) {
      const int64_t count = std::min(kTileRows, shape.v_head_dim - first);
      MultiplyTile(ops_, call.kv_b, first_value_row + first, count,
                   absl::MakeConstSpan(sums, static_cast<size_t>(num_rows)), scratch, values,
                   kTileRows);
      for (int64_t i = 0; i < num_rows; ++i) {
        const int64_t out_row = batch.rows[i].row * shape.num_heads + head;
        std::copy_n(values + i * kTileRows, count, call.out + out_row * shape.v_head_dim + first);
      }
    }
  });
}

}  // namespace caravan
