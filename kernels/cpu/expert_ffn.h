#ifndef CARAVAN_KERNELS_CPU_EXPERT_FFN_H_
#define CARAVAN_KERNELS_CPU_EXPERT_FFN_H_

// Gated feed-forward networks on the CPU: routed experts, and a plain one as the single expert of
// weight 1. Rows are grouped by expert, so each chosen expert's weights are read and decoded once
// for up to kFfnTileRows rows; the others are not touched. The experts of a batch take two parallel
// regions (more where their rows are many): an item of the first has some tiles of one expert's
// gate and the same of its up, an item of the second some tiles of all experts' downs.

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/tile_product.h"

namespace caravan {

/// Rows of an expert that are taken together: enough that decoding its weights costs nothing, and
/// few enough for a cache.
inline constexpr int64_t kFfnTileRows = 512;
/// Rows of all experts that are between the two regions at a time: inter floats for each.
inline constexpr int64_t kFfnRunShares = 4096;

class CpuExpertFfn {
 public:
  /// Both outlive the object.
  CpuExpertFfn(const CpuOps& ops, Lanes& lanes) : ops_(ops), lanes_(lanes) {}

  /// As Backend::RoutedExperts.
  absl::Status RunExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                          const int32_t* expert_ids, const float* weights, int64_t k, float* out);

  /// As Backend::Ffn.
  void RunDense(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out);

 private:
  /// What an expert does for a row.
  struct Share {
    int64_t row;
    float weight;
  };
  /// Some of one expert's shares: shares_[begin, end).
  struct Group {
    const FfnWeights* ffn;
    int64_t begin;
    int64_t end;
    int64_t inner;  // where theirs begin between the regions
  };

  /// What the next groups compute with. x, out: of row 0 of the shares. kept: null, or where each
  /// share's product goes instead of into `out`, [shares_, hidden].
  void SetRows(const float* x, int64_t num_rows, float* out, float* kept);
  /// Fills shares_ and first_share_.
  void SortShares(const int32_t* expert_ids, const float* weights, int64_t num_rows, int64_t k);
  /// Adds shares_[begin, end), and runs what has come together whenever it is a run.
  void AddGroups(const FfnWeights& ffn, int64_t begin, int64_t end);
  /// out[row] += weight * FFN(x[row]) for all shares of groups_, group after group; or keeps the
  /// FFNs. Leaves no groups.
  void RunGroups();
  /// Makes room for what lies between the regions, and quantizes x where a group takes blocks.
  void Prepare();
  /// out[row] += weight * kept product, share after share.
  void AddKept(int64_t hidden);
  void RunInner(const Group& group, int64_t first_tile, int64_t num_tiles, LaneScratch& scratch);
  void RunDown(const Group& group, int64_t first_tile, int64_t num_tiles, LaneScratch& scratch);

  const CpuOps ops_;
  Lanes& lanes_;
  std::vector<Share> shares_;         // by expert, then by row
  std::vector<int64_t> first_share_;  // by expert; where the last one's end, too
  std::vector<Group> groups_;
  int64_t group_shares_ = 0;  // of groups_ together
  // As SetRows said.
  const float* x_ = nullptr;
  int64_t num_rows_ = 0;
  float* out_ = nullptr;
  float* kept_ = nullptr;
  ScratchBuffer<float> kept_storage_;
  // x [rows, hidden] as blocks, if a gate or up took those.
  ActivationBlocks x_blocks_;
  bool has_x_blocks_ = false;
  // silu(gate(x)) * up(x), [group_shares_, inter], in the forms that the downs take.
  ScratchBuffer<float> inner_storage_;
  float* inner_ = nullptr;
  ActivationBlocks inner_blocks_;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_EXPERT_FFN_H_
