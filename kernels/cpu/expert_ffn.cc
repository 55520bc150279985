#include "kernels/cpu/expert_ffn.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/int_math.h"
#include "kernels/cpu/weight_tile.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

float Silu(float x) { return x / (1 + std::exp(-x)); }

}  // namespace

void CpuExpertFfn::RunExperts(absl::Span<const FfnWeights> experts, const float* x,
                              int64_t num_rows, const int32_t* expert_ids, const float* weights,
                              int64_t k, float* out) {
  const int64_t num_experts = static_cast<int64_t>(experts.size());
  for (int64_t first = 0; first < num_rows; first += kFfnTileRows) {
    const int64_t begin = first * k;
    const int64_t end = std::min(first + kFfnTileRows, num_rows) * k;
    // Counting sort by expert: rows stay in order.
    next_share_.assign(num_experts + 1, 0);
    for (int64_t i = begin; i < end; ++i) {
      CARAVAN_CHECK(expert_ids[i] >= 0 && expert_ids[i] < num_experts);
      ++next_share_[expert_ids[i] + 1];
    }
    groups_.clear();
    for (int64_t e = 0; e < num_experts; ++e) {
      const int64_t count = next_share_[e + 1];
      next_share_[e + 1] += next_share_[e];
      if (count > 0) groups_.push_back({&experts[e], next_share_[e], next_share_[e] + count});
    }
    shares_.resize(end - begin);
    for (int64_t i = begin; i < end; ++i) {
      shares_[next_share_[expert_ids[i]]++] = {i / k - first, weights[i]};
    }
    if (groups_.empty()) continue;
    RunGroups(x + first * groups_[0].ffn->gate.cols, (end - begin) / k,
              out + first * groups_[0].ffn->down.rows);
  }
}

void CpuExpertFfn::RunDense(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out) {
  std::fill_n(out, num_rows * ffn.down.rows, 0.0f);
  for (int64_t first = 0; first < num_rows; first += kFfnTileRows) {
    const int64_t count = std::min(kFfnTileRows, num_rows - first);
    shares_.clear();
    for (int64_t i = 0; i < count; ++i) shares_.push_back({i, 1});
    groups_.assign(1, {&ffn, 0, count});
    RunGroups(x + first * ffn.gate.cols, count, out + first * ffn.down.rows);
  }
}

void CpuExpertFfn::RunGroups(const float* x, int64_t num_rows, float* out) {
  const int64_t inter = groups_[0].ffn->gate.rows;
  const int64_t hidden = groups_[0].ffn->gate.cols;
  int64_t work = 0;  // of a third: each of the three matrices has inter * hidden weights
  int64_t most_shares = 0;
  for (const Group& group : groups_) {
    CARAVAN_CHECK(group.ffn->gate.rows == inter && group.ffn->up.rows == inter &&
                  group.ffn->down.cols == inter);
    CARAVAN_CHECK(group.ffn->gate.cols == hidden && group.ffn->up.cols == hidden &&
                  group.ffn->down.rows == hidden);
    work += ProductWork(inter * hidden, group.end - group.begin);
    most_shares = std::max(most_shares, group.end - group.begin);
  }
  Prepare(x, num_rows);

  const int64_t num_groups = static_cast<int64_t>(groups_.size());
  // Even: a down may take the columns of an item as whole activation blocks.
  const int64_t inner_tiles =
      RoundUp<int64_t>(TilesPerItem(groups_[0].ffn->gate, 2, most_shares), 2);
  const int64_t inner_items = CeilDiv(Tiles(inter), inner_tiles);
  lanes_.ForEach(num_groups * inner_items, 2 * work, [&](int64_t item, LaneScratch& scratch) {
    RunInner(groups_[item / inner_items], item % inner_items * inner_tiles, inner_tiles, x,
             scratch);
  });
  // A thread takes a few columns of the result through all experts, so their order is kept.
  const int64_t down_tiles = TilesPerItem(groups_[0].ffn->down, num_groups, most_shares);
  const int64_t down_items = CeilDiv(Tiles(hidden), down_tiles);
  lanes_.ForEach(down_items, work, [&](int64_t item, LaneScratch& scratch) {
    for (const Group& group : groups_) RunDown(group, item * down_tiles, down_tiles, scratch, out);
  });
}

void CpuExpertFfn::Prepare(const float* x, int64_t num_rows) {
  bool x_as_blocks = false;
  bool inner_as_blocks = false;
  bool inner_as_floats = false;
  for (const Group& group : groups_) {
    x_as_blocks |= TakesBlocks(group.ffn->gate) || TakesBlocks(group.ffn->up);
    inner_as_blocks |= TakesBlocks(group.ffn->down);
    inner_as_floats |= !TakesBlocks(group.ffn->down);
  }
  const Matrix& gate = groups_[0].ffn->gate;
  const int64_t num_shares = static_cast<int64_t>(shares_.size());
  if (x_as_blocks) x_blocks_.Quantize(ops_.tiles, lanes_, x, num_rows, gate.cols);
  if (inner_as_blocks) inner_blocks_.Resize(num_shares, gate.rows);
  if (inner_as_floats) inner_ = inner_storage_.Get(num_shares * gate.rows);
}

void CpuExpertFfn::RunInner(const Group& group, int64_t first_tile, int64_t num_tiles,
                            const float* x, LaneScratch& scratch) {
  const Matrix& gate = group.ffn->gate;
  const Matrix& up = group.ffn->up;
  const int64_t first = first_tile * kTileRows;
  const int64_t width = num_tiles * kTileRows;
  const int64_t count = std::min(width, gate.rows - first);
  const int64_t num_shares = group.end - group.begin;
  ActivationRows rows;
  const float** floats = scratch.pointers[1].Get(num_shares);
  for (int64_t i = 0; i < num_shares; ++i) {
    floats[i] = x + shares_[group.begin + i].row * gate.cols;
  }
  rows.floats = absl::MakeConstSpan(floats, num_shares);
  if (TakesBlocks(gate) || TakesBlocks(up)) {
    const ActivationBlock** blocks = scratch.blocks.Get(num_shares);
    for (int64_t i = 0; i < num_shares; ++i) {
      blocks[i] = x_blocks_.Row(shares_[group.begin + i].row);
    }
    rows.blocks = absl::MakeConstSpan(blocks, num_shares);
  }
  float* gates = scratch.floats[0].Get(num_shares * width);
  float* ups = scratch.floats[1].Get(num_shares * width);
  MultiplyTiles(ops_, gate, first_tile, num_tiles, rows, scratch, gates, width);
  MultiplyTiles(ops_, up, first_tile, num_tiles, rows, scratch, ups, width);
  const bool as_blocks = TakesBlocks(group.ffn->down);
  for (int64_t i = 0; i < num_shares; ++i) {
    const int64_t share = group.begin + i;
    float* inner = as_blocks ? gates + i * width : inner_ + share * gate.rows + first;
    for (int64_t r = 0; r < count; ++r) {
      inner[r] = Silu(gates[i * width + r]) * ups[i * width + r];
    }
    if (as_blocks) {
      ops_.tiles.quantize(inner, count, inner_blocks_.Row(share) + first / kActivationBlock);
    }
  }
}

void CpuExpertFfn::RunDown(const Group& group, int64_t first_tile, int64_t num_tiles,
                           LaneScratch& scratch, float* out) {
  const Matrix& down = group.ffn->down;
  const int64_t first = first_tile * kTileRows;
  const int64_t width = num_tiles * kTileRows;
  const int64_t count = std::min(width, down.rows - first);
  const int64_t num_shares = group.end - group.begin;
  ActivationRows rows;
  if (TakesBlocks(down)) {
    const ActivationBlock** blocks = scratch.blocks.Get(num_shares);
    for (int64_t i = 0; i < num_shares; ++i) blocks[i] = inner_blocks_.Row(group.begin + i);
    rows.blocks = absl::MakeConstSpan(blocks, num_shares);
  } else {
    const float** floats = scratch.pointers[1].Get(num_shares);
    for (int64_t i = 0; i < num_shares; ++i) floats[i] = inner_ + (group.begin + i) * down.cols;
    rows.floats = absl::MakeConstSpan(floats, num_shares);
  }
  float* products = scratch.floats[0].Get(num_shares * width);
  MultiplyTiles(ops_, down, first_tile, num_tiles, rows, scratch, products, width);
  for (int64_t i = 0; i < num_shares; ++i) {
    const Share& share = shares_[group.begin + i];
    ops_.rows.axpy(share.weight, products + i * width, count, out + share.row * down.rows + first);
  }
}

}  // namespace caravan
