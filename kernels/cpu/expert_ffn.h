#ifndef CARAVAN_KERNELS_CPU_EXPERT_FFN_H_
#define CARAVAN_KERNELS_CPU_EXPERT_FFN_H_

// Gated feed-forward networks on the CPU: routed experts, and a plain one as the single expert of
// weight 1. Rows are grouped by expert, so each chosen expert's weights are read and decoded once
// for up to kFfnTileRows rows; the others are not touched. All experts of a call take two parallel
// regions: an item of the first has some tiles of one expert's gate and the same of its up, an item
// of the second some tiles of all experts' downs.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/tile_product.h"

namespace caravan {

/// Rows that are taken together. Bounds the scratch: k * inter floats for each.
inline constexpr int64_t kFfnTileRows = 512;

class CpuExpertFfn {
 public:
  /// Both outlive the object.
  CpuExpertFfn(const CpuOps& ops, Lanes& lanes) : ops_(ops), lanes_(lanes) {}

  /// As Backend::RoutedExperts.
  void RunExperts(absl::Span<const FfnWeights> experts, const float* x, int64_t num_rows,
                  const int32_t* expert_ids, const float* weights, int64_t k, float* out);

  /// As Backend::Ffn.
  void RunDense(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out);

 private:
  struct Share {
    int64_t row;
    float weight;
  };
  /// One expert and its shares_[begin, end).
  struct Group {
    const FfnWeights* ffn;
    int64_t begin;
    int64_t end;
  };

  /// out[row] += weight * FFN(x[row]) for all shares, group after group. x, out: from row 0 of the
  /// shares on, num_rows of them.
  void RunGroups(const float* x, int64_t num_rows, float* out);
  /// Makes room for what lies between the regions, and quantizes x where a group takes blocks.
  void Prepare(const float* x, int64_t num_rows);
  void RunInner(const Group& group, int64_t first_tile, int64_t num_tiles, const float* x,
                LaneScratch& scratch);
  void RunDown(const Group& group, int64_t first_tile, int64_t num_tiles, LaneScratch& scratch,
               float* out);

  const CpuOps ops_;
  Lanes& lanes_;
  std::vector<Share> shares_;
  std::vector<Group> groups_;  // in ascending order of expert
  std::vector<int64_t> next_share_;
  // x [rows, hidden] as blocks, if a gate or up takes those.
  ActivationBlocks x_blocks_;
  // silu(gate(x)) * up(x), [shares, inter], in the forms that the downs take.
  ScratchBuffer<float> inner_storage_;
  float* inner_ = nullptr;
  ActivationBlocks inner_blocks_;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_EXPERT_FFN_H_
