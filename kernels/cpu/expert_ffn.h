#ifndef CARAVAN_KERNELS_CPU_EXPERT_FFN_H_
#define CARAVAN_KERNELS_CPU_EXPERT_FFN_H_

// Gated feed-forward networks on the CPU: routed experts, and a plain one as the single expert of
// weight 1. Rows are grouped by expert, so each chosen expert's weights are read and decoded once
// for up to kFfnTileRows rows; the others are not touched.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/row_ops.h"

namespace caravan {

/// Rows that are taken together. Bounds the scratch: k * inter floats for each.
inline constexpr int64_t kFfnTileRows = 512;

class CpuExpertFfn {
 public:
  /// Both outlive the object.
  CpuExpertFfn(const RowOps& ops, Lanes& lanes) : ops_(ops), lanes_(lanes) {}

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

  /// out[row] += weight * FFN(x[row]) for all shares, group after group.
  void RunGroups(const float* x, float* out);
  void RunInner(const Group& group, int64_t tile, const float* x, LaneScratch& scratch);
  void RunDown(const Group& group, int64_t tile, LaneScratch& scratch, float* out);

  const RowOps& ops_;
  Lanes& lanes_;
  std::vector<Share> shares_;
  std::vector<Group> groups_;  // in ascending order of expert
  std::vector<int64_t> next_share_;
  ScratchBuffer<float> inner_storage_;
  float* inner_ = nullptr;  // [shares, inter]: silu(gate(x)) * up(x)
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_EXPERT_FFN_H_
