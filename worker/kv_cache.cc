#include "worker/kv_cache.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace caravan {

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const Options& options) {
  CARAVAN_CHECK(options.num_layers > 0 && options.width > 0 && options.block_tokens > 0);
  const int64_t block_bytes =
      options.num_layers * options.block_tokens * DTypeBytes(options.dtype, options.width);
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
    : options_(options),
      num_blocks_(num_blocks),
      layer_bytes_(options.block_tokens * DTypeBytes(options.dtype, options.width)),
      memory_(std::move(memory)) {}

std::byte* KvCache::LayerOfBlock(int64_t block, int layer) const {
  CARAVAN_CHECK(block >= 0 && block < num_blocks_ && layer >= 0 && layer < options_.num_layers);
  return memory_.data() + (block * options_.num_layers + layer) * layer_bytes_;
}

void KvCache::CopyBlock(int64_t from, int64_t to) {
  if (from == to) return;
  // The layers of a block lie one behind the other.
  std::memcpy(LayerOfBlock(to, 0), LayerOfBlock(from, 0),
              static_cast<size_t>(options_.num_layers * layer_bytes_));
}

}  // namespace caravan
