#ifndef CARAVAN_KERNELS_CPU_MLA_ATTENTION_H_
#define CARAVAN_KERNELS_CPU_MLA_ATTENTION_H_

// Backend::MlaAttention on the CPU, in the absorbed form (DeepSeek-V2, arXiv:2405.04434, section
// 2.1.2): a query goes into the latent space once, q' = W_UK^T q_nope, where scores and sums are
// taken over the cache as it lies, and W_UV turns the sum into the head's output. Softmax is online
// (arXiv:1805.02867, algorithm 3) over tiles of positions that are counted from position 0, so a
// row's result does not depend on how the prompt was cut, nor on block_tokens. Scratch does not
// grow with the context.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/row_ops.h"

namespace caravan {

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
  struct Call;  // the arguments of Run
  struct Tile;  // some rows times some heads, and the scratch for them

  void RunTile(const Call& call, const Tile& tile, LaneScratch& scratch) const;
  void AbsorbQueries(const Call& call, const Tile& tile, LaneScratch& scratch) const;
  void Attend(const Call& call, const Tile& tile, LaneScratch& scratch) const;
  void ProjectValues(const Call& call, const Tile& tile, LaneScratch& scratch) const;

  const RowOps& ops_;
  Lanes& lanes_;
  std::vector<QueryRow> rows_;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_MLA_ATTENTION_H_
