#include "worker/kv_cache.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace caravan {

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const Options& options) {
  CARAVAN_CHECK(options.num_layers > 0 && options.width > 0 && options.block_tokens > 0);
  CARAVAN_CHECK(options.disk_bytes == 0 || options.memory->is_host());
  const int64_t row_bytes = DTypeBytes(options.dtype, options.width);
  const KvBlockShape shape = {options.num_layers, options.block_tokens * row_bytes};
  KvTiers tiers = SplitKvBlocks(shape, options.budget_bytes, options.disk_bytes);
  std::unique_ptr<KvDisk> disk;
  if (tiers.on_disk > 0) {
    KvDisk::Options disk_options;
    disk_options.shape = shape;
    disk_options.row_bytes = row_bytes;
    disk_options.num_blocks = tiers.on_disk;
    disk_options.directory = options.disk_directory;
    disk_options.reads = options.disk_reads;
    absl::StatusOr<std::unique_ptr<KvDisk>> created = KvDisk::Create(disk_options);
    if (created.ok()) {
      disk = *std::move(created);
    } else {
      LogWarning("kv_disk_refused", {{"why", created.status().message()}});
      tiers = SplitKvBlocks(shape, options.budget_bytes, 0);
    }
  }
  if (tiers.blocks() < 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("the KV cache's budget of ", FormatByteSize(options.budget_bytes),
                     " holds no block: one of ", options.block_tokens, " tokens takes ",
                     FormatByteSize(shape.block_bytes())));
  }
  CARAVAN_ASSIGN_OR_RETURN(Array blocks,
                           options.memory->Allocate(tiers.in_memory * shape.block_bytes()));
  return std::unique_ptr<KvCache>(new KvCache(options, tiers, std::move(blocks), std::move(disk)));
}

KvCache::KvCache(const Options& options, const KvTiers& tiers, Array blocks,
                 std::unique_ptr<KvDisk> disk)
    : options_(options),
      tiers_(tiers),
      layer_bytes_(options.block_tokens * DTypeBytes(options.dtype, options.width)),
      blocks_(std::move(blocks)),
      disk_(std::move(disk)) {}

void KvCache::BeginStep(absl::Span<const KvBlockUse> uses) {
  if (disk_ == nullptr) return;
  on_disk_.clear();
  for (const KvBlockUse& use : uses) {
    if (!IsOnDisk(use.block)) continue;
    on_disk_.push_back({use.block - tiers_.in_memory, use.old_rows, use.rows});
  }
  disk_->BeginStep(on_disk_);
}

absl::Status KvCache::LoadLayer(int layer, int next) {
  return disk_ == nullptr ? absl::OkStatus() : disk_->Load(layer, next);
}

absl::Status KvCache::StoreLayer(int layer) {
  return disk_ == nullptr ? absl::OkStatus() : disk_->Store(layer);
}

std::byte* KvCache::LayerOfBlock(int64_t block, int layer) const {
  CARAVAN_CHECK(block >= 0 && block < num_blocks() && layer >= 0 && layer < options_.num_layers);
  if (IsOnDisk(block)) return disk_->LayerOfBlock(block - tiers_.in_memory, layer);
  return blocks_.data() + (block * options_.num_layers + layer) * layer_bytes_;
}

absl::Status KvCache::CopyBlock(int64_t from, int64_t to) {
  if (from == to) return absl::OkStatus();
  if (!IsOnDisk(from) && !IsOnDisk(to)) {
    // The layers of a block lie one behind the other.
    return options_.memory->Copy(LayerOfBlock(from, 0), options_.num_layers * layer_bytes_,
                                 LayerOfBlock(to, 0));
  }
  // A failed step may still read to where the copy goes.
  disk_->BeginStep({});
  for (int layer = 0; layer < options_.num_layers; ++layer) {
    if (IsOnDisk(from)) {
      CARAVAN_RETURN_IF_ERROR(disk_->ReadLayer(from - tiers_.in_memory, layer));
    }
    std::memcpy(LayerOfBlock(to, layer), LayerOfBlock(from, layer),
                static_cast<size_t>(layer_bytes_));
    if (IsOnDisk(to)) {
      CARAVAN_RETURN_IF_ERROR(disk_->WriteLayer(to - tiers_.in_memory, layer));
    }
  }
  return absl::OkStatus();
}

absl::Status KvCache::ReadLayer(int64_t block, int layer, absl::Span<std::byte> to) {
  if (!IsOnDisk(block)) {
    return options_.memory->CopyOut(LayerOfBlock(block, layer), std::ssize(to), to.data());
  }
  disk_->BeginStep({});
  CARAVAN_RETURN_IF_ERROR(disk_->ReadLayer(block - tiers_.in_memory, layer));
  std::memcpy(to.data(), LayerOfBlock(block, layer), to.size());
  return absl::OkStatus();
}

absl::Status KvCache::WriteLayer(int64_t block, int layer, absl::Span<const std::byte> from) {
  if (!IsOnDisk(block)) {
    return options_.memory->CopyIn(from.data(), std::ssize(from), LayerOfBlock(block, layer));
  }
  disk_->BeginStep({});
  std::memcpy(LayerOfBlock(block, layer), from.data(), from.size());
  return disk_->WriteLayer(block - tiers_.in_memory, layer);
}

}  // namespace caravan
