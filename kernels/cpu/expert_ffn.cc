#include "kernels/cpu/expert_ffn.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/cpu/weight_tile.h"

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
      shares_[next_share_[expert_ids[i]]++] = {i / k, weights[i]};
    }
    RunGroups(x, out);
  }
}

void CpuExpertFfn::RunDense(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out) {
  std::fill_n(out, num_rows * ffn.down.rows, 0.0f);
  for (int64_t first = 0; first < num_rows; first += kFfnTileRows) {
    const int64_t count = std::min(kFfnTileRows, num_rows - first);
    shares_.clear();
    for (int64_t i = 0; i < count; ++i) shares_.push_back({first + i, 1});
    groups_.assign(1, {&ffn, 0, count});
    RunGroups(x, out);
  }
}

void CpuExpertFfn::RunGroups(const float* x, float* out) {
  if (groups_.empty()) return;
  const int64_t inter = groups_[0].ffn->gate.rows;
  const int64_t hidden = groups_[0].ffn->gate.cols;
  int64_t work = 0;  // of a third: each of the three matrices has inter * hidden weights
  for (const Group& group : groups_) {
    CARAVAN_CHECK(group.ffn->gate.rows == inter && group.ffn->up.rows == inter &&
                  group.ffn->down.cols == inter);
    CARAVAN_CHECK(group.ffn->gate.cols == hidden && group.ffn->up.cols == hidden &&
                  group.ffn->down.rows == hidden);
    work += ProductWork(inter * hidden, group.end - group.begin);
  }
  inner_ = inner_storage_.Get(static_cast<int64_t>(shares_.size()) * inter);

  const int64_t num_groups = static_cast<int64_t>(groups_.size());
  const int64_t inner_tiles = Tiles(inter);
  lanes_.ForEach(num_groups * inner_tiles, 2 * work, [&](int64_t item, LaneScratch& scratch) {
    RunInner(groups_[item / inner_tiles], item % inner_tiles, x, scratch);
  });
  // A thread takes a few columns of the result through all experts, so their order is kept.
  lanes_.ForEach(Tiles(hidden), work, [&](int64_t tile, LaneScratch& scratch) {
    for (const Group& group : groups_) RunDown(group, tile, scratch, out);
  });
}

void CpuExpertFfn::RunInner(const Group& group, int64_t tile, const float* x,
                            LaneScratch& scratch) {
  const Matrix& gate = group.ffn->gate;
  const int64_t first = tile * kTileRows;
  const int64_t count = std::min(kTileRows, gate.rows - first);
  const int64_t num_shares = group.end - group.begin;
  const float** inputs = scratch.pointers[1].Get(num_shares);
  for (int64_t i = 0; i < num_shares; ++i) {
    inputs[i] = x + shares_[group.begin + i].row * gate.cols;
  }
  const auto rows = absl::MakeConstSpan(inputs, num_shares);
  float* gates = scratch.floats[0].Get(num_shares * kTileRows);
  float* ups = scratch.floats[1].Get(num_shares * kTileRows);
  MultiplyTile(ops_, gate, first, count, rows, scratch, gates, kTileRows);
  MultiplyTile(ops_, group.ffn->up, first, count, rows, scratch, ups, kTileRows);
  for (int64_t i = 0; i < num_shares; ++i) {
    float* inner = inner_ + (group.begin + i) * gate.rows + first;
    for (int64_t r = 0; r < count; ++r) {
      inner[r] = Silu(gates[i * kTileRows + r]) * ups[i * kTileRows + r];
    }
  }
}

void CpuExpertFfn::RunDown(const Group& group, int64_t tile, LaneScratch& scratch, float* out) {
  const Matrix& down = group.ffn->down;
  const int64_t first = tile * kTileRows;
  const int64_t count = std::min(kTileRows, down.rows - first);
  const int64_t num_shares = group.end - group.begin;
  const float** inputs = scratch.pointers[1].Get(num_shares);
  for (int64_t i = 0; i < num_shares; ++i) inputs[i] = inner_ + (group.begin + i) * down.cols;
  float* products = scratch.floats[0].Get(num_shares * kTileRows);
  MultiplyTile(ops_, down, first, count, absl::MakeConstSpan(inputs, num_shares), scratch, products,
               kTileRows);
  for (int64_t i = 0; i < num_shares; ++i) {
    const Share& share = shares_[group.begin + i];
    ops_.axpy(share.weight, products + i * kTileRows, count, out + share.row * down.rows + first);
  }
}

}  // namespace caravan
