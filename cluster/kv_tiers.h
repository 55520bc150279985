#ifndef CARAVAN_CLUSTER_KV_TIERS_H_
#define CARAVAN_CLUSTER_KV_TIERS_H_

// How the blocks of a stage's KV cache are shared out between memory and disk: arithmetic that the
// planner and the worker's cache have in common.
//
// A block on disk is used one layer at a time: it has room in memory for the layer that is computed
// and for the next, which is read meanwhile. So of a stage of L layers, a block on disk takes 2 / L
// of the memory of one that lies there, and stages of one or two layers gain nothing.

#include <cstdint>

namespace caravan {

struct KvBlockShape {
  int num_layers = 0;       // that have keys and values
  int64_t layer_bytes = 0;  // of one layer of a block

  int64_t block_bytes() const { return num_layers * layer_bytes; }
  /// Of one layer of a block on disk: whole units of what direct reads take.
  int64_t disk_layer_bytes() const;
  int64_t disk_block_bytes() const { return num_layers * disk_layer_bytes(); }
  /// Of a block on disk.
  int64_t memory_of_disk_block() const { return 2 * disk_layer_bytes(); }
};

struct KvTiers {
  int64_t in_memory = 0;  // blocks; those with the lowest numbers
  int64_t on_disk = 0;

  int64_t blocks() const { return in_memory + on_disk; }
};

/// As many blocks on disk as it has room for and leave memory the room to use them; the rest of the
/// memory is for blocks of its own. None on disk where that gives no more blocks than memory alone.
KvTiers SplitKvBlocks(const KvBlockShape& shape, int64_t memory_bytes, int64_t disk_bytes);

/// The least of at most `disk_bytes` with which SplitKvBlocks gives so many blocks, or, where it
/// cannot, as many as it can.
int64_t KvDiskFor(const KvBlockShape& shape, int64_t memory_bytes, int64_t disk_bytes,
                  int64_t blocks);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_KV_TIERS_H_
