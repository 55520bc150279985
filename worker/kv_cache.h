#ifndef CARAVAN_WORKER_KV_CACHE_H_
#define CARAVAN_WORKER_KV_CACHE_H_

// The compressed keys and values of one stage's layers: an array of blocks of a fixed number of
// tokens. Whose block is whose is the coordinator's business; steps name blocks by number. A block
// holds its tokens for every layer of the stage, so one block table serves all of them.
//
// Used by one thread at a time.

#include <cstdint>
#include <memory>

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

  /// Takes as many blocks as the budget holds. Memory is touched only as blocks are written.
  /// Errors: FailedPrecondition - the budget holds no block; ResourceExhausted - no memory.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const Options& options);

  int64_t num_blocks() const { return num_blocks_; }
  int64_t block_tokens() const { return options_.block_tokens; }

  /// One layer of a block: f32 [block_tokens, width].
  /// REQUIRES: 0 <= block < num_blocks; 0 <= layer < num_layers, counted in the stage.
  float* LayerOfBlock(int64_t block, int layer) const;

  /// Every layer of `from` over those of `to`.
  /// REQUIRES: 0 <= from, to < num_blocks.
  void CopyBlock(int64_t from, int64_t to);

 private:
  KvCache(const Options& options, int64_t num_blocks, Buffer memory);

  int64_t LayerFloats() const { return options_.block_tokens * options_.width; }

  const Options options_;
  const int64_t num_blocks_;
  const Buffer memory_;  // f32 [num_blocks, num_layers, block_tokens, width]
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_CACHE_H_
