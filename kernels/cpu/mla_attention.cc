#include "kernels/cpu/mla_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/weight_tile.h"
#include "kernels/kv_rows.h"

namespace caravan {
namespace {

// Queries (a row and a head) that share the reading of the cache.
constexpr int64_t kTileQueries = 64;
// Rows among them, which share the decoding of kv_b; the rest are heads.
constexpr int64_t kTileQueryRows = 8;
// Positions whose cache rows (576 floats each) stay in the second-level cache. Part of the order of
// sums.
constexpr int64_t kTilePositions = 64;

/// Turns scores [n] into exp(score * scale - *max), raising *max first if they ask for it, and adds
/// them to *total. Returns what the sums of earlier positions are to be multiplied by.
float OnlineSoftmax(float scale, float* scores, int64_t n, float* max, float* total) {
  float new_max = *max;
  for (int64_t i = 0; i < n; ++i) {
    scores[i] *= scale;
    new_max = std::max(new_max, scores[i]);
  }
  const float correction = new_max > *max ? std::exp(*max - new_max) : 1;
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    scores[i] = std::exp(scores[i] - new_max);
    sum += scores[i];
  }
  *max = new_max;
  *total = *total * correction + sum;
  return correction;
}

}  // namespace

struct CpuMlaAttention::Call {
  const MlaShape& shape;
  const Matrix& kv_b;
  const KvLayout& kv;
  const float* q;
  float* out;

  int64_t FirstKeyRow(int64_t head) const {
    return head * (shape.qk_nope_head_dim + shape.v_head_dim);
  }
  const float* Query(int64_t row, int64_t head) const {
    return q + (row * shape.num_heads + head) * shape.q_head_dim();
  }
};

struct CpuMlaAttention::Tile {
  absl::Span<const QueryRow> rows;
  int64_t first_head;
  int64_t num_heads;
  // Query i * num_heads + h is that of rows[i] and head first_head + h.
  float* queries;  // [queries, kv_width]: in the latent space, then the rope part
  float* sums;     // [queries, kv_lora_rank]
  float* maxima;   // [queries]
  float* totals;   // [queries]

  int64_t num_rows() const { return static_cast<int64_t>(rows.size()); }
};

void CpuMlaAttention::Run(const MlaShape& shape, const Matrix& kv_b,
                          absl::Span<const SequenceRows> sequences, const KvLayout& kv,
                          const float* q, float* out) {
  rows_.clear();
  int64_t num_scores = 0;
  for (const SequenceRows& sequence : sequences) {
    for (int64_t i = 0; i < sequence.num_rows; ++i) {
      rows_.push_back({&sequence, sequence.first_row + i, sequence.first_position + i});
      num_scores += shape.num_heads * (sequence.first_position + i + 1);
    }
  }
  const int64_t num_rows = static_cast<int64_t>(rows_.size());
  if (num_rows == 0) return;

  const Call call = {shape, kv_b, kv, q, out};
  const int64_t rows_per_tile = std::min(num_rows, kTileQueryRows);
  const int64_t row_tiles = (num_rows + rows_per_tile - 1) / rows_per_tile;
  // Few rows are cut into enough heads to give each thread two tiles.
  const int64_t heads_per_tile =
      std::clamp<int64_t>(shape.num_heads * row_tiles / (2 * lanes_.num_threads()), 1,
                          std::min(shape.num_heads, kTileQueries / rows_per_tile));
  const int64_t head_tiles = (shape.num_heads + heads_per_tile - 1) / heads_per_tile;
  const int64_t work = num_scores * 2 * shape.kv_width() +
                       row_tiles * ProductWork(kv_b.rows * kv_b.cols, rows_per_tile);
  lanes_.ForEach(row_tiles * head_tiles, work, [&](int64_t item, LaneScratch& scratch) {
    const int64_t first_row = item % row_tiles * rows_per_tile;
    const int64_t first_head = item / row_tiles * heads_per_tile;
    Tile tile;
    tile.rows = absl::MakeConstSpan(rows_).subspan(first_row, rows_per_tile);
    tile.first_head = first_head;
    tile.num_heads = std::min(heads_per_tile, shape.num_heads - first_head);
    const int64_t num_queries = tile.num_rows() * tile.num_heads;
    tile.queries = scratch.floats[0].Get(num_queries * shape.kv_width());
    tile.sums = scratch.floats[1].Get(num_queries * shape.kv_lora_rank);
    tile.maxima = scratch.floats[2].Get(2 * num_queries);
    tile.totals = tile.maxima + num_queries;
    RunTile(call, tile, scratch);
  });
}

void CpuMlaAttention::RunTile(const Call& call, const Tile& tile, LaneScratch& scratch) const {
  const int64_t num_queries = tile.num_rows() * tile.num_heads;
  std::fill_n(tile.queries, num_queries * call.shape.kv_width(), 0.0f);
  std::fill_n(tile.sums, num_queries * call.shape.kv_lora_rank, 0.0f);
  std::fill_n(tile.maxima, num_queries, -std::numeric_limits<float>::infinity());
  std::fill_n(tile.totals, num_queries, 0.0f);
  AbsorbQueries(call, tile, scratch);
  Attend(call, tile, scratch);
  ProjectValues(call, tile, scratch);
}

void CpuMlaAttention::AbsorbQueries(const Call& call, const Tile& tile,
                                    LaneScratch& scratch) const {
  const MlaShape& shape = call.shape;
  const int64_t latent = shape.kv_lora_rank;
  float* decoded = scratch.weights.Get(kTileRows * latent);
  const float** keys = scratch.pointers[1].Get(kTileRows);
  for (int64_t h = 0; h < tile.num_heads; ++h) {
    const int64_t head = tile.first_head + h;
    for (int64_t first = 0; first < shape.qk_nope_head_dim; first += kTileRows) {
      const int64_t count = std::min(kTileRows, shape.qk_nope_head_dim - first);
      for (int64_t r = 0; r < count; ++r) {
        keys[r] = decoded + r * latent;
        DecodeRow(ops_, call.kv_b, call.FirstKeyRow(head) + first + r, 0, latent,
                  decoded + r * latent);
      }
      for (int64_t i = 0; i < tile.num_rows(); ++i) {
        ops_.weighted_sums(call.Query(tile.rows[i].row, head) + first, 0, keys, count, latent,
                           tile.queries + (i * tile.num_heads + h) * shape.kv_width(), 0, 1);
      }
    }
    for (int64_t i = 0; i < tile.num_rows(); ++i) {
      std::copy_n(call.Query(tile.rows[i].row, head) + shape.qk_nope_head_dim,
                  shape.qk_rope_head_dim,
                  tile.queries + (i * tile.num_heads + h) * shape.kv_width() + latent);
    }
  }
}

void CpuMlaAttention::Attend(const Call& call, const Tile& tile, LaneScratch& scratch) const {
  const MlaShape& shape = call.shape;
  const int64_t heads = tile.num_heads;
  const float** cached = scratch.pointers[0].Get(kTilePositions);
  const RowOps::Decode decode = DecoderOf(ops_, call.kv.dtype);
  float* decoded = scratch.weights.Get(kTilePositions * shape.kv_width());
  const float** queries = scratch.pointers[1].Get(tile.num_rows() * heads);
  for (int64_t i = 0; i < tile.num_rows() * heads; ++i) {
    queries[i] = tile.queries + i * shape.kv_width();
  }
  float* scores = scratch.floats[3].Get(heads * kTilePositions);

  for (int64_t begin = 0, end; begin < tile.num_rows(); begin = end) {
    // Rows [begin, end) are one sequence's, so they share its cache.
    const SequenceRows* sequence = tile.rows[begin].sequence;
    end = begin + 1;
    while (end < tile.num_rows() && tile.rows[end].sequence == sequence) ++end;
    const int64_t num_positions = tile.rows[end - 1].position + 1;

    for (int64_t first = 0; first < num_positions; first += kTilePositions) {
      const int64_t count = std::min(kTilePositions, num_positions - first);
      for (int64_t p = 0; p < count; ++p) {
        const std::byte* const row = KvRow(shape, call.kv, *sequence, first + p);
        if (call.kv.dtype == DType::kF32) {
          cached[p] = reinterpret_cast<const float*>(row);
        } else {
          decode(row, shape.kv_width(), 1, decoded + p * shape.kv_width());
          cached[p] = decoded + p * shape.kv_width();
        }
      }
      for (int64_t i = begin; i < end; ++i) {
        const int64_t visible = std::min(count, tile.rows[i].position + 1 - first);
        if (visible <= 0) continue;
        std::fill_n(scores, heads * kTilePositions, 0.0f);
        ops_.dots(cached, visible, queries + i * heads, heads, shape.kv_width(), scores,
                  kTilePositions);
        float* sums = tile.sums + i * heads * shape.kv_lora_rank;
        for (int64_t h = 0; h < heads; ++h) {
          const float correction =
              OnlineSoftmax(shape.softmax_scale, scores + h * kTilePositions, visible,
                            tile.maxima + i * heads + h, tile.totals + i * heads + h);
          if (correction != 1) {
            ops_.scale(correction, shape.kv_lora_rank, sums + h * shape.kv_lora_rank);
          }
        }
        ops_.weighted_sums(scores, kTilePositions, cached, visible, shape.kv_lora_rank, sums,
                           shape.kv_lora_rank, heads);
      }
    }
  }
}

void CpuMlaAttention::ProjectValues(const Call& call, const Tile& tile,
                                    LaneScratch& scratch) const {
  const MlaShape& shape = call.shape;
  for (int64_t i = 0; i < tile.num_rows() * tile.num_heads; ++i) {
    ops_.scale(1 / tile.totals[i], shape.kv_lora_rank, tile.sums + i * shape.kv_lora_rank);
  }
  const float** sums = scratch.pointers[1].Get(tile.num_rows());
  float* values = scratch.floats[3].Get(tile.num_rows() * kTileRows);
  for (int64_t h = 0; h < tile.num_heads; ++h) {
    const int64_t head = tile.first_head + h;
    for (int64_t i = 0; i < tile.num_rows(); ++i) {
      sums[i] = tile.sums + (i * tile.num_heads + h) * shape.kv_lora_rank;
    }
    for (int64_t first = 0; first < shape.v_head_dim; first += kTileRows) {
      const int64_t count = std::min(kTileRows, shape.v_head_dim - first);
      MultiplyTile(ops_, call.kv_b, call.FirstKeyRow(head) + shape.qk_nope_head_dim + first, count,
                   absl::MakeConstSpan(sums, tile.num_rows()), scratch, values, kTileRows);
      for (int64_t i = 0; i < tile.num_rows(); ++i) {
        const int64_t out_row = tile.rows[i].row * shape.num_heads + head;
        std::copy_n(values + i * kTileRows, count, call.out + out_row * shape.v_head_dim + first);
      }
    }
  }
}

}  // namespace caravan
