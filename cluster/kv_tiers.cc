#include "cluster/kv_tiers.h"

#include <algorithm>

#include "base/check.h"
#include "base/int_math.h"
#include "base/io/direct_file.h"

namespace caravan {

int64_t KvBlockShape::disk_layer_bytes() const { return RoundUp(layer_bytes, kDirectAlignment); }

KvTiers SplitKvBlocks(const KvBlockShape& shape, int64_t memory_bytes, int64_t disk_bytes) {
  CARAVAN_CHECK(shape.num_layers > 0 && shape.layer_bytes > 0);
  const KvTiers memory_alone = {memory_bytes / shape.block_bytes(), 0};
  KvTiers tiers;
  tiers.on_disk =
      std::min(disk_bytes / shape.disk_block_bytes(), memory_bytes / shape.memory_of_disk_block());
  tiers.in_memory =
      (memory_bytes - tiers.on_disk * shape.memory_of_disk_block()) / shape.block_bytes();
  return tiers.blocks() > memory_alone.blocks() ? tiers : memory_alone;
}

int64_t KvDiskFor(const KvBlockShape& shape, int64_t memory_bytes, int64_t disk_bytes,
                  int64_t blocks) {
  const auto blocks_with = [&](int64_t on_disk) {
    return SplitKvBlocks(shape, memory_bytes, on_disk * shape.disk_block_bytes()).blocks();
  };
  // More on disk never gives fewer blocks, so the least that gives enough is found by halves.
  int64_t most = SplitKvBlocks(shape, memory_bytes, disk_bytes).on_disk;
  const int64_t wanted = std::min(blocks, blocks_with(most));
  int64_t least = 0;
  while (least < most) {
    const int64_t middle = least + (most - least) / 2;
    if (blocks_with(middle) >= wanted) {
      most = middle;
    } else {
      least = middle + 1;
    }
  }
  return least * shape.disk_block_bytes();
}

}  // namespace caravan
