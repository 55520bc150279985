#ifndef CARAVAN_WORKER_KV_CACHE_H_
#define CARAVAN_WORKER_KV_CACHE_H_

// The compressed keys and values of one stage's layers: an array of blocks of a fixed number of
// tokens, in one of the formats of kernels/kv_rows.h. Whose block is whose is the coordinator's
// business; steps name blocks by number. A block holds its tokens for every layer of the stage, so
// one block table serves all of them.
//
// Used by one thread at a time.

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "base/buffer.h"
#include "base/dtype.h"
#include "kernels/backend.h"

namespace caravan {

class KvCache {
 public:
  struct Options {
    int num_layers = 0;
    int64_t width = 0;  // values a token and layer: MlaShape::kv_width()
    DType dtype = DType::kF32;
    int64_t block_tokens = 0;  // tokens a block
    int64_t budget_bytes = 0;
  };

  /// Takes as many blocks as the budget holds. Memory is touched only as blocks are written.
  /// REQUIRES: `dtype` has whole blocks in `width`.
  /// Errors: FailedPrecondition - the budget holds no block; ResourceExhausted - no memory.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const Options& options);

  int64_t num_blocks() const { return num_blocks_; }
  int64_t block_tokens() const { return options_.block_tokens; }
  KvLayout layout() const { return {options_.dtype, options_.block_tokens}; }

  /// One layer of a block: `dtype` [block_tokens, width].
  /// REQUIRES: 0 <= block < num_blocks; 0 <= layer < num_layers, counted in the stage.
  std::byte* LayerOfBlock(int64_t block, int layer) const;

  /// Every layer of `from` over those of `to`.
  /// REQUIRES: 0 <= from, to < num_blocks.
  void CopyBlock(int64_t from, int64_t to);

 private:
  KvCache(const Options& options, int64_t num_blocks, Buffer memory);

  const Options options_;
  const int64_t num_blocks_;
  const int64_t layer_bytes_;  // of a block
  const Buffer memory_;        // [num_blocks, num_layers] of layer_bytes_
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_CACHE_H_
