#include "kernels/cpu/expert_ffn.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/int_math.h"
#include "base/status_macros.h"
#include "kernels/cpu/weight_tile.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

float Silu(float x) { return x / (1 + std::exp(-x)); }

}  // namespace

absl::Status CpuExpertFfn::RunExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                                      const int32_t* expert_ids, const float* weights, int64_t k,
                                      float* out) {
  SortShares(expert_ids, weights, num_rows, k);
  const int64_t num_shares = static_cast<int64_t>(shares_.size());
  const int64_t num_experts = static_cast<int64_t>(first_share_.size()) - 2;
  const bool keeps = !experts.ascending();
  SetRows(x, num_rows, out, nullptr);
  int64_t given = 0;
  int64_t hidden = 0;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const LoadedExpert> batch, experts.Next());
    if (batch.empty()) break;
    hidden = batch[0].weights.down.rows;
    if (keeps) kept_ = kept_storage_.Get(num_shares * hidden);
    for (const LoadedExpert& expert : batch) {
      CARAVAN_CHECK(expert.id >= 0);
      if (expert.id >= num_experts) continue;  // which no row chose
      const int64_t begin = first_share_[expert.id];
      const int64_t end = first_share_[expert.id + 1];
      AddGroups(expert.weights, begin, end);
      given += end - begin;
    }
    RunGroups();
  }
  CARAVAN_CHECK(given == num_shares);
  if (keeps) AddKept(hidden);
  return absl::OkStatus();
}

void CpuExpertFfn::RunDense(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out) {
  std::fill_n(out, num_rows * ffn.down.rows, 0.0f);
  for (int64_t first = 0; first < num_rows; first += kFfnTileRows) {
    const int64_t count = std::min(kFfnTileRows, num_rows - first);
    shares_.clear();
    for (int64_t i = 0; i < count; ++i) shares_.push_back({i, 1});
    SetRows(x + first * ffn.gate.cols, count, out + first * ffn.down.rows, nullptr);
    AddGroups(ffn, 0, count);
    RunGroups();
  }
}

void CpuExpertFfn::SetRows(const float* x, int64_t num_rows, float* out, float* kept) {
  x_ = x;
  num_rows_ = num_rows;
  out_ = out;
  kept_ = kept;
  has_x_blocks_ = false;
  groups_.clear();  // what an error left
  group_shares_ = 0;
}

void CpuExpertFfn::SortShares(const int32_t* expert_ids, const float* weights, int64_t num_rows,
                              int64_t k) {
  const int64_t num_shares = num_rows * k;
  int32_t last = -1;
  for (int64_t i = 0; i < num_shares; ++i) {
    CARAVAN_CHECK(expert_ids[i] >= 0 || expert_ids[i] == kNotHere);
    last = std::max(last, expert_ids[i]);
  }
  // Counting sort: rows stay in order. Counts stand two further on than their expert, so their sums
  // one further on than where it begins; they become where it ends, and so the next begins.
  first_share_.assign(last + 3, 0);
  for (int64_t i = 0; i < num_shares; ++i) {
    if (expert_ids[i] != kNotHere) ++first_share_[expert_ids[i] + 2];
  }
  for (int64_t e = 2; e <= last + 2; ++e) first_share_[e] += first_share_[e - 1];
  shares_.resize(first_share_[last + 2]);
  for (int64_t i = 0; i < num_shares; ++i) {
    if (expert_ids[i] == kNotHere) continue;
    shares_[first_share_[expert_ids[i] + 1]++] = {i / k, weights[i]};
  }
}

void CpuExpertFfn::AddGroups(const FfnWeights& ffn, int64_t begin, int64_t end) {
  for (; begin < end; begin += kFfnTileRows) {
    const int64_t count = std::min(kFfnTileRows, end - begin);
    if (group_shares_ + count > kFfnRunShares) RunGroups();
    groups_.push_back({&ffn, begin, begin + count, group_shares_});
    group_shares_ += count;
  }
}

void CpuExpertFfn::RunGroups() {
  if (groups_.empty()) return;
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
  Prepare();

  const int64_t num_groups = static_cast<int64_t>(groups_.size());
  // Even: a down may take the columns of an item as whole activation blocks.
  const int64_t inner_tiles =
      RoundUp<int64_t>(TilesPerItem(groups_[0].ffn->gate, 2, most_shares), 2);
  const int64_t inner_items = CeilDiv(Tiles(inter), inner_tiles);
  lanes_.ForEach(num_groups * inner_items, 2 * work, [&](int64_t item, LaneScratch& scratch) {
    RunInner(groups_[item / inner_items], item % inner_items * inner_tiles, inner_tiles, scratch);
  });
  // A thread takes a few columns of the result through all experts, so their order is kept.
  const int64_t down_tiles = TilesPerItem(groups_[0].ffn->down, num_groups, most_shares);
  const int64_t down_items = CeilDiv(Tiles(hidden), down_tiles);
  lanes_.ForEach(down_items, work, [&](int64_t item, LaneScratch& scratch) {
    for (const Group& group : groups_) RunDown(group, item * down_tiles, down_tiles, scratch);
  });
  groups_.clear();
  group_shares_ = 0;
}

void CpuExpertFfn::AddKept(int64_t hidden) {
  const int64_t num_shares = static_cast<int64_t>(shares_.size());
  // The same columns for each share as in RunDown, but for how many at a time: whole tiles.
  constexpr int64_t kWidth = 16 * kTileRows;
  lanes_.ForEach(CeilDiv(hidden, kWidth), num_shares * hidden, [&](int64_t item, LaneScratch&) {
    const int64_t first = item * kWidth;
    const int64_t count = std::min(kWidth, hidden - first);
    for (int64_t i = 0; i < num_shares; ++i) {
      ops_.rows.axpy(shares_[i].weight, kept_ + i * hidden + first, count,
                     out_ + shares_[i].row * hidden + first);
    }
  });
}

void CpuExpertFfn::Prepare() {
  bool x_as_blocks = false;
  bool inner_as_blocks = false;
  bool inner_as_floats = false;
  for (const Group& group : groups_) {
    x_as_blocks |= TakesBlocks(group.ffn->gate) || TakesBlocks(group.ffn->up);
    inner_as_blocks |= TakesBlocks(group.ffn->down);
    inner_as_floats |= !TakesBlocks(group.ffn->down);
  }
  const Matrix& gate = groups_[0].ffn->gate;
  if (x_as_blocks && !has_x_blocks_) {
    x_blocks_.Quantize(ops_.tiles, lanes_, x_, num_rows_, gate.cols);
    has_x_blocks_ = true;
  }
  if (inner_as_blocks) inner_blocks_.Resize(group_shares_, gate.rows);
  if (inner_as_floats) inner_ = inner_storage_.Get(group_shares_ * gate.rows);
}

void CpuExpertFfn::RunInner(const Group& group, int64_t first_tile, int64_t num_tiles,
                            LaneScratch& scratch) {
  const Matrix& gate = group.ffn->gate;
  const Matrix& up = group.ffn->up;
  const int64_t first = first_tile * kTileRows;
  const int64_t width = num_tiles * kTileRows;
  const int64_t count = std::min(width, gate.rows - first);
  const int64_t num_shares = group.end - group.begin;
  ActivationRows rows;
  if (!TakesBlocks(gate) || !TakesBlocks(up)) {
    const float** floats = scratch.pointers[1].Get(num_shares);
    for (int64_t i = 0; i < num_shares; ++i) {
      floats[i] = x_ + shares_[group.begin + i].row * gate.cols;
    }
    rows.floats = absl::MakeConstSpan(floats, num_shares);
  }
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
    const int64_t place = group.inner + i;
    float* inner = as_blocks ? gates + i * width : inner_ + place * gate.rows + first;
    for (int64_t r = 0; r < count; ++r) {
      inner[r] = Silu(gates[i * width + r]) * ups[i * width + r];
    }
    if (as_blocks) {
      ops_.tiles.quantize(inner, count, inner_blocks_.Row(place) + first / kActivationBlock);
    }
  }
}

void CpuExpertFfn::RunDown(const Group& group, int64_t first_tile, int64_t num_tiles,
                           LaneScratch& scratch) {
  const Matrix& down = group.ffn->down;
  const int64_t first = first_tile * kTileRows;
  const int64_t width = num_tiles * kTileRows;
  const int64_t count = std::min(width, down.rows - first);
  const int64_t num_shares = group.end - group.begin;
  ActivationRows rows;
  if (TakesBlocks(down)) {
    const ActivationBlock** blocks = scratch.blocks.Get(num_shares);
    for (int64_t i = 0; i < num_shares; ++i) blocks[i] = inner_blocks_.Row(group.inner + i);
    rows.blocks = absl::MakeConstSpan(blocks, num_shares);
  } else {
    const float** floats = scratch.pointers[1].Get(num_shares);
    for (int64_t i = 0; i < num_shares; ++i) floats[i] = inner_ + (group.inner + i) * down.cols;
    rows.floats = absl::MakeConstSpan(floats, num_shares);
  }
  if (kept_ != nullptr) {
    MultiplyTiles(ops_, down, first_tile, num_tiles, rows, scratch,
                  kept_ + group.begin * down.rows + first, down.rows);
    return;
  }
  float* products = scratch.floats[0].Get(num_shares * width);
  MultiplyTiles(ops_, down, first_tile, num_tiles, rows, scratch, products, width);
  for (int64_t i = 0; i < num_shares; ++i) {
    const Share& share = shares_[group.begin + i];
    ops_.rows.axpy(share.weight, products + i * width, count, out_ + share.row * down.rows + first);
  }
}

}  // namespace caravan
