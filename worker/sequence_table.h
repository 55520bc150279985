#ifndef CARAVAN_WORKER_SEQUENCE_TABLE_H_
#define CARAVAN_WORKER_SEQUENCE_TABLE_H_

// A step's slices as the kernels take them: which rows are whose, and where the keys and values of
// a layer lie.
//
// Used by one thread at a time.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "caravan/v1/pipeline.pb.h"
#include "kernels/backend.h"
#include "worker/kv_cache.h"

namespace caravan {

class SequenceTable {
 public:
  /// The next `num_rows` rows are the first ones of `slice`, which must outlive the table.
  /// REQUIRES: num_rows >= 1; CheckStep is OK with the slice's step.
  void Add(const v1::SequenceSlice& slice, int64_t num_rows);

  int64_t num_rows() const { return num_rows_; }

  /// What the rows do with the blocks of their sequences.
  std::vector<KvBlockUse> BlockUses(int64_t block_tokens) const;

  /// With the blocks of `layer`, counted in the stage. Valid until the next call.
  absl::Span<const SequenceRows> ForLayer(const KvCache& kv_cache, int layer);

 private:
  int64_t num_rows_ = 0;
  std::vector<const v1::SequenceSlice*> slices_;
  std::vector<SequenceRows> sequences_;
  std::vector<std::byte*> blocks_;  // of one layer, slice after slice
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_SEQUENCE_TABLE_H_
