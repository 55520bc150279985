#include "worker/kv_cache.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace caravan {

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const Options& options) {
  CARAVAN_CHECK(options.num_layers > 0 && options.width > 0 && options.block_tokens > 0);
  const int64_t block_bytes = options.num_layers * options.block_tokens * options.width *
                              static_cast<int64_t>(sizeof(float));
  const int64_t num_blocks = options.budget_bytes / block_bytes;
  if (num_blocks < 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("the KV cache's budget of ", FormatByteSize(options.budget_bytes),
                     " holds no block: one of ", options.block_tokens, " tokens takes ",
                     FormatByteSize(block_bytes)));
  }
  CARAVAN_ASSIGN_OR_RETURN(Buffer memory, Buffer::Allocate(num_blocks * block_bytes));
  return std::unique_ptr<KvCache>(new KvCache(options, num_blocks, std::move(memory)));
}

KvCache::KvCache(const Options& options, int64_t num_blocks, Buffer memory)
    : options_(options), num_blocks_(num_blocks), memory_(std::move(memory)) {
  // The lowest block is taken first, so that what is touched stays together.
  for (int64_t block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

absl::Status KvCache::Append(uint64_t sequence_id, int64_t first_position, int64_t num_tokens) {
  const auto it = sequences_.find(sequence_id);
  const int64_t present = it == sequences_.end() ? 0 : it->second.num_tokens;
  const int64_t present_blocks =
      it == sequences_.end() ? 0 : static_cast<int64_t>(it->second.blocks.size());
  if (first_position != present) {
    return absl::FailedPreconditionError(absl::StrCat("sequence ", sequence_id,
                                                      ": tokens come for position ", first_position,
                                                      ", but the KV cache ends at ", present));
  }
  const int64_t needed =
      (present + num_tokens + options_.block_tokens - 1) / options_.block_tokens - present_blocks;
  if (needed > free_blocks()) {
    return absl::ResourceExhaustedError(absl::StrCat("sequence ", sequence_id, ": needs ", needed,
                                                     " KV blocks, ", free_blocks(), " are free"));
  }
  Sequence& sequence = sequences_[sequence_id];
  for (int64_t i = 0; i < needed; ++i) {
    sequence.blocks.push_back(free_.back());
    free_.pop_back();
  }
  sequence.num_tokens = present + num_tokens;
  return absl::OkStatus();
}

void KvCache::Free(uint64_t sequence_id) {
  const auto it = sequences_.find(sequence_id);
  if (it == sequences_.end()) return;
  free_.insert(free_.end(), it->second.blocks.rbegin(), it->second.blocks.rend());
  sequences_.erase(it);
}

void KvCache::AppendLayerBlocks(uint64_t sequence_id, int layer,
                                std::vector<float*>& blocks) const {
  const auto it = sequences_.find(sequence_id);
  CARAVAN_CHECK(it != sequences_.end() && layer >= 0 && layer < options_.num_layers);
  for (const int64_t block : it->second.blocks) {
    blocks.push_back(memory_.floats() + (block * options_.num_layers + layer) * LayerFloats());
  }
}

}  // namespace caravan
