#include "coordinator/block_manager.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/hash/hash.h"
#include "base/check.h"

namespace caravan {
namespace {

uint64_t HashContent(uint64_t parent, absl::Span<const int32_t> tokens) {
  return absl::HashOf(parent, tokens);
}

int64_t CommonPrefix(absl::Span<const int32_t> a, absl::Span<const int32_t> b) {
  const size_t limit = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + static_cast<ptrdiff_t>(limit), b.begin()).first -
         a.begin();
}

}  // namespace

BlockManager::BlockManager(int64_t num_blocks, int64_t num_near, int64_t block_tokens,
                           const ArchiveContents& archive)
    : num_near_(num_near),
      block_tokens_(block_tokens),
      blocks_(static_cast<size_t>(num_blocks)),
      archive_(archive) {
  CARAVAN_CHECK(num_blocks >= 0 && num_blocks <= UINT32_MAX && block_tokens >= 1);
  CARAVAN_CHECK(num_near >= 0 && num_near <= num_blocks);
  // Ascending, so a heap already.
  for (int64_t block = 0; block < num_blocks; ++block) {
    blank_.push_back(static_cast<uint32_t>(block));
  }
}

absl::Span<const int32_t> BlockManager::BlockOf(absl::Span<const int32_t> tokens,
                                                int64_t index) const {
  const auto begin = static_cast<size_t>(index * block_tokens_);
  if (begin >= tokens.size()) return {};
  return tokens.subspan(begin, static_cast<size_t>(block_tokens_));
}

std::optional<uint32_t> BlockManager::FindFull(uint64_t parent,
                                               absl::Span<const int32_t> tokens) const {
  const auto it = full_blocks_.find(HashContent(parent, tokens));
  if (it == full_blocks_.end()) return std::nullopt;
  const Block& found = blocks_[it->second];
  if (found.parent != parent || absl::MakeConstSpan(found.tokens) != tokens) return std::nullopt;
  return it->second;
}

int64_t BlockManager::Adopt(absl::Span<const int32_t> tokens, BlockTable& table, int64_t reserve) {
  CARAVAN_CHECK(table.blocks.empty() && !tokens.empty());
  tokens.remove_suffix(1);
  table.last_name = archive_.root();
  while (true) {
    const absl::Span<const int32_t> wanted = BlockOf(tokens, table.num_published);
    if (static_cast<int64_t>(wanted.size()) < block_tokens_) break;
    const std::optional<uint32_t> found = FindFull(table.last_content, wanted);
    if (!found.has_value()) break;
    Use(*found);
    table.blocks.push_back(*found);
    table.last_content = blocks_[*found].content;
    if (archive_.active()) {
      table.last_name = NameKvBlock(table.last_name, wanted);
      table.pending_uses.push_back({*found, table.last_name});
    }
    ++table.num_published;
  }
  if (archive_.active()) AdoptArchived(tokens, table, reserve);
  if (!table.pending_restores.empty()) {
    return static_cast<int64_t>(table.blocks.size()) * block_tokens_;
  }
  const int64_t shared_tokens = table.num_published * block_tokens_;

  // The block that goes on for longest as the sequence does.
  const absl::Span<const int32_t> rest = BlockOf(tokens, table.num_published);
  if (rest.empty()) return shared_tokens;
  const auto children = children_.find({table.last_content, rest.front()});
  if (children == children_.end()) return shared_tokens;
  int64_t copied_tokens = 0;
  uint32_t from = 0;
  for (const uint32_t child : children->second) {
    const int64_t common = CommonPrefix(blocks_[child].tokens, rest);
    if (common > copied_tokens) {
      copied_tokens = common;
      from = child;
    }
  }
  if (copied_tokens == 0) return shared_tokens;
  Use(from);  // so that Take does not take it
  // Until it is sent, a copy takes up its source too. Where the sequence needs that very block, it
  // would wait for ever.
  const int64_t missing = BlocksFor(static_cast<int64_t>(tokens.size())) - table.num_published;
  if (free_blocks() < missing) {
    Release(from);
    return shared_tokens;
  }
  const uint32_t to = *Take();
  table.blocks.push_back(to);
  table.pending_copy = BlockTable::Copy{from, to};
  return shared_tokens + copied_tokens;
}

void BlockManager::AdoptArchived(absl::Span<const int32_t> tokens, BlockTable& table,
                                 int64_t reserve) {
  // Who would have to wait for room must not put out for that what others may find.
  const int64_t missing = BlocksFor(static_cast<int64_t>(tokens.size()) + 1) - table.num_published;
  if (free_blocks() < missing + reserve) return;
  KvBlockName name = table.last_name;
  for (int64_t index = table.num_published;; ++index) {
    const absl::Span<const int32_t> wanted = BlockOf(tokens, index);
    if (static_cast<int64_t>(wanted.size()) < block_tokens_) return;
    name = NameKvBlock(name, wanted);
    if (!archive_.Contains(name)) return;
    const uint32_t block = *Take();
    table.blocks.push_back(block);
    table.pending_restores.push_back({block, name});
  }
}

bool BlockManager::Grow(int64_t num_tokens, BlockTable& table) {
  const int64_t needed = BlocksFor(num_tokens) - static_cast<int64_t>(table.blocks.size());
  if (needed > free_blocks()) return false;
  for (int64_t i = 0; i < needed; ++i) table.blocks.push_back(*Take());
  return true;
}

void BlockManager::ArchiveSent(BlockTable& table) {
  for (const ArchivedKvBlock& use : table.pending_uses) {
    archive_.Use(use.name);
    kept_.push_back(use);
  }
  for (const ArchivedKvBlock& restore : table.pending_restores) archive_.Use(restore.name);
  table.pending_uses.clear();
  table.pending_restores.clear();
}

void BlockManager::CopySent(BlockTable& table) {
  if (!table.pending_copy.has_value()) return;
  Release(table.pending_copy->from);
  table.pending_copy.reset();
}

void BlockManager::Publish(absl::Span<const int32_t> tokens, BlockTable& table) {
  if (table.num_published == 0) table.last_name = archive_.root();
  while (true) {
    const absl::Span<const int32_t> own = BlockOf(tokens, table.num_published);
    if (own.empty()) return;
    const uint32_t block = table.blocks[static_cast<size_t>(table.num_published)];
    const uint64_t content = PublishBlock(block, table.last_content, own);
    if (static_cast<int64_t>(own.size()) < block_tokens_) return;
    table.last_content = content;
    if (archive_.active()) table.last_name = KeepBlock(block, table.last_name, own);
    ++table.num_published;
  }
}

KvBlockName BlockManager::KeepBlock(uint32_t block, const KvBlockName& before,
                                    absl::Span<const int32_t> tokens) {
  const KvBlockName name = NameKvBlock(before, tokens);
  archive_.Use(name);
  kept_.push_back({block, name});
  return name;
}

uint64_t BlockManager::PublishBlock(uint32_t block, uint64_t parent,
                                    absl::Span<const int32_t> tokens) {
  Block& own = blocks_[block];
  const bool full = static_cast<int64_t>(tokens.size()) == block_tokens_;
  if (full) {
    const std::optional<uint32_t> same = FindFull(parent, tokens);
    if (same.has_value() && *same != block) {
      if (own.content != 0) Unpublish(block);
      return blocks_[*same].content;
    }
  }
  if (own.content == 0) {
    own.content = ++last_content_;
    own.parent = parent;
    children_[{parent, tokens.front()}].push_back(block);
  }
  own.tokens.assign(tokens.begin(), tokens.end());
  if (full) full_blocks_[HashContent(parent, tokens)] = block;
  return own.content;
}

void BlockManager::Unpublish(uint32_t block) {
  Block& own = blocks_[block];
  const auto siblings = children_.find({own.parent, own.tokens.front()});
  siblings->second.erase(std::find(siblings->second.begin(), siblings->second.end(), block));
  if (siblings->second.empty()) children_.erase(siblings);
  const auto full = full_blocks_.find(HashContent(own.parent, own.tokens));
  if (full != full_blocks_.end() && full->second == block) full_blocks_.erase(full);
  own.content = 0;
  own.tokens.clear();
}

void BlockManager::Use(uint32_t block) {
  Block& own = blocks_[block];
  if (own.num_users++ == 0) UnusedOf(block).erase(own.unused);
}

std::optional<uint32_t> BlockManager::Take() {
  uint32_t block = 0;
  const bool near_is_blank = !blank_.empty() && IsNear(blank_.front());
  if (!near_is_blank && (!unused_.empty() || blank_.empty())) {
    std::list<uint32_t>& unused = unused_.empty() ? far_unused_ : unused_;
    if (unused.empty()) return std::nullopt;
    block = unused.front();
    unused.pop_front();
    Unpublish(block);
  } else {
    std::pop_heap(blank_.begin(), blank_.end(), std::greater<>());
    block = blank_.back();
    blank_.pop_back();
  }
  blocks_[block].num_users = 1;
  return block;
}

void BlockManager::Release(uint32_t block) {
  Block& own = blocks_[block];
  if (--own.num_users > 0) return;
  if (own.content == 0) {
    blank_.push_back(block);
    std::push_heap(blank_.begin(), blank_.end(), std::greater<>());
  } else {
    std::list<uint32_t>& unused = UnusedOf(block);
    own.unused = unused.insert(unused.end(), block);
  }
}

void BlockManager::Free(BlockTable& table) {
  CopySent(table);
  // From the end: who needs room takes the ends of sequences before their beginnings, without which
  // the ends cannot be found.
  std::for_each(table.blocks.rbegin(), table.blocks.rend(),
                [this](uint32_t block) { Release(block); });
  table = BlockTable{};
}

void BlockManager::CheckInvariants() const {
  int64_t used = 0;
  int64_t findable = 0;
  for (const Block& block : blocks_) {
    CARAVAN_CHECK(block.num_users >= 0);
    used += block.num_users > 0 ? 1 : 0;
    findable += block.content != 0 ? 1 : 0;
    CARAVAN_CHECK((block.content != 0) == !block.tokens.empty());
  }
  CARAVAN_CHECK(used + free_blocks() == num_blocks());
  for (const uint32_t block : blank_) {
    CARAVAN_CHECK(blocks_[block].num_users == 0 && blocks_[block].content == 0);
  }
  for (const std::list<uint32_t>* const unused : {&unused_, &far_unused_}) {
    for (const uint32_t block : *unused) {
      CARAVAN_CHECK(blocks_[block].num_users == 0 && blocks_[block].content != 0);
      CARAVAN_CHECK(IsNear(block) == (unused == &unused_));
    }
  }
  int64_t listed = 0;
  for (const auto& [key, children] : children_) {
    listed += static_cast<int64_t>(children.size());
    for (const uint32_t child : children) {
      CARAVAN_CHECK(blocks_[child].parent == key.first &&
                    blocks_[child].tokens.front() == key.second);
    }
  }
  CARAVAN_CHECK(listed == findable);
  for (const auto& [hash, block] : full_blocks_) {
    CARAVAN_CHECK(HashContent(blocks_[block].parent, blocks_[block].tokens) == hash);
  }
}

}  // namespace caravan
