#ifndef CARAVAN_WORKER_KV_CACHE_H_
#define CARAVAN_WORKER_KV_CACHE_H_

// The compressed keys and values of one stage's layers, in blocks of a fixed number of tokens drawn
// from a budget. A block holds its tokens for every layer of the stage, so one block table serves
// all of them.
//
// Used by one thread at a time.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/buffer.h"

namespace caravan {

class KvCache {
 public:
  struct Options {
    int num_layers = 0;
    int64_t width = 0;         // floats a token and layer: MlaShape::kv_width()
    int64_t block_tokens = 0;  // tokens a block
    int64_t budget_bytes = 0;
  };

  /// Takes as many blocks as the budget holds. Memory is touched only as sequences grow into it.
  /// Errors: FailedPrecondition - the budget holds no block; ResourceExhausted - no memory.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const Options& options);

  int64_t num_blocks() const { return num_blocks_; }
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  int64_t block_tokens() const { return options_.block_tokens; }

  /// Grows the sequence by `num_tokens`, which are to stand at [first_position, first_position +
  /// num_tokens); a new sequence starts at 0.
  /// Errors: FailedPrecondition - first_position is not where the sequence ends;
  ///         ResourceExhausted - too few free blocks. Nothing changes then.
  absl::Status Append(uint64_t sequence_id, int64_t first_position, int64_t num_tokens);

  /// Gives the sequence's blocks back. Unknown sequences are none of its business: fine.
  void Free(uint64_t sequence_id);

  /// The blocks of one layer in order of position, each f32 [block_tokens, width], appended to
  /// `blocks`. REQUIRES: the sequence is here; 0 <= layer < num_layers, counted in the stage.
  void AppendLayerBlocks(uint64_t sequence_id, int layer, std::vector<float*>& blocks) const;

 private:
  struct Sequence {
    int64_t num_tokens = 0;
    std::vector<int64_t> blocks;
  };
  KvCache(const Options& options, int64_t num_blocks, Buffer memory);

  int64_t LayerFloats() const { return options_.block_tokens * options_.width; }

  const Options options_;
  const int64_t num_blocks_;
  const Buffer memory_;  // f32 [num_blocks, num_layers, block_tokens, width]
  std::vector<int64_t> free_;
  absl::flat_hash_map<uint64_t, Sequence> sequences_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_CACHE_H_
