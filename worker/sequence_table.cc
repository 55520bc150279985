#include "worker/sequence_table.h"

#include <algorithm>

namespace caravan {

void SequenceTable::Add(const v1::SequenceSlice& slice, int64_t num_rows) {
  slices_.push_back(&slice);
  sequences_.push_back({num_rows_, num_rows, slice.first_position(), {}});
  num_rows_ += num_rows;
  blocks_.resize(blocks_.size() + static_cast<size_t>(slice.kv_blocks_size()));
}

std::vector<KvBlockUse> SequenceTable::BlockUses(int64_t block_tokens) const {
  std::vector<KvBlockUse> uses;
  uses.reserve(blocks_.size());
  for (size_t i = 0; i < slices_.size(); ++i) {
    const int64_t first_new = sequences_[i].first_position;
    const int64_t end = first_new + sequences_[i].num_rows;
    int64_t begin = 0;  // position of the block's first row
    for (const uint32_t block : slices_[i]->kv_blocks()) {
      if (begin >= end) break;
      uses.push_back({block, std::clamp<int64_t>(first_new - begin, 0, block_tokens),
                      std::min(end - begin, block_tokens)});
      begin += block_tokens;
    }
  }
  return uses;
}

absl::Span<const SequenceRows> SequenceTable::ForLayer(const KvCache& kv_cache, int layer) {
  size_t next = 0;
  for (size_t i = 0; i < slices_.size(); ++i) {
    const size_t first = next;
    for (const uint32_t block : slices_[i]->kv_blocks()) {
      blocks_[next++] = kv_cache.LayerOfBlock(block, layer);
    }
    sequences_[i].kv_blocks = absl::MakeConstSpan(blocks_).subspan(first, next - first);
  }
  return sequences_;
}

}  // namespace caravan
