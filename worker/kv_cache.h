#ifndef CARAVAN_WORKER_KV_CACHE_H_
#define CARAVAN_WORKER_KV_CACHE_H_

// The compressed keys and values of one stage's layers: an array of blocks of a fixed number of
// tokens, in one of the formats of kernels/kv_rows.h. Whose block is whose is the coordinator's
// business; steps name blocks by number. A block holds its tokens for every layer of the stage, so
// one block table serves all of them.
//
// The blocks with the highest numbers may lie on disk (KvDisk). So a step says which blocks it uses
// (BeginStep), and between LoadLayer and StoreLayer one layer of them is in memory.
//
// Used by one thread at a time.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/dtype.h"
#include "base/io/read_queue.h"
#include "cluster/kv_tiers.h"
#include "kernels/backend.h"
#include "kernels/memory.h"
#include "worker/kv_disk.h"

namespace caravan {

class KvCache {
 public:
  struct Options {
    int num_layers = 0;
    int64_t width = 0;  // values a token and layer: MlaShape::kv_width()
    DType dtype = DType::kF32;
    int64_t block_tokens = 0;  // tokens a block
    int64_t budget_bytes = 0;  // of memory
    Memory* memory = &HostMemory();
    // Of `disk_directory`'s disk, for blocks beyond the budget; 0 where memory is not the host's.
    int64_t disk_bytes = 0;
    std::string disk_directory;
    ReadQueue* disk_reads = nullptr;  // as KvDisk::Options
  };

  /// Takes as many blocks as SplitKvBlocks says; without the disk, and with a warning, where
  /// KvDisk::Create fails. Memory is touched only as blocks are used.
  /// REQUIRES: `dtype` has whole blocks in `width`.
  /// Errors: FailedPrecondition - the budget holds no block; as Memory::Allocate.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const Options& options);

  int64_t num_blocks() const { return tiers_.blocks(); }
  int64_t blocks_on_disk() const { return tiers_.on_disk; }
  int64_t block_tokens() const { return options_.block_tokens; }
  KvLayout layout() const { return {options_.dtype, options_.block_tokens}; }

  /// The blocks that the layers use from now on, as KvDisk::BeginStep.
  void BeginStep(absl::Span<const KvBlockUse> uses);
  /// Before and after a layer is computed, as KvDisk::Load and Store.
  absl::Status LoadLayer(int layer, int next);
  absl::Status StoreLayer(int layer);

  /// One layer of a block: `dtype` [block_tokens, width]. Of a block on disk, while the layer is
  /// loaded.
  /// REQUIRES: 0 <= block < num_blocks; 0 <= layer < num_layers, counted in the stage.
  std::byte* LayerOfBlock(int64_t block, int layer) const;

  /// Every layer of `from` over those of `to`; between steps.
  /// REQUIRES: 0 <= from, to < num_blocks.
  /// Errors: those of KvDisk, and as Memory::Copy.
  absl::Status CopyBlock(int64_t from, int64_t to);

  /// One layer of a block between steps, in whatever memory or on the disk that it lies:
  /// layer_bytes of the host's memory. Errors: as CopyBlock.
  absl::Status ReadLayer(int64_t block, int layer, absl::Span<std::byte> to);
  absl::Status WriteLayer(int64_t block, int layer, absl::Span<const std::byte> from);
  int64_t layer_bytes() const { return layer_bytes_; }

 private:
  KvCache(const Options& options, const KvTiers& tiers, Array blocks, std::unique_ptr<KvDisk> disk);

  bool IsOnDisk(int64_t block) const { return block >= tiers_.in_memory; }

  const Options options_;
  const KvTiers tiers_;
  const int64_t layer_bytes_;           // of a block
  const Array blocks_;                  // [tiers_.in_memory, num_layers] of layer_bytes_
  const std::unique_ptr<KvDisk> disk_;  // null: no blocks lie there
  std::vector<KvBlockUse> on_disk_;     // those of the step, numbered from 0
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_CACHE_H_
