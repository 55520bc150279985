#ifndef CARAVAN_COORDINATOR_BLOCK_MANAGER_H_
#define CARAVAN_COORDINATOR_BLOCK_MANAGER_H_

// Who uses which KV block. Every stage numbers its blocks alike, so what is decided here holds for
// all of them.
//
// A block whose tokens are known can be found by them, also after its last user has gone and until
// somebody needs the room: the least recently used goes first. A sequence that begins with the same
// tokens shares whole blocks; of the block where the two part ways it takes a copy, so that a
// shared block is never written to. Blocks are found by (the block before, own tokens), so equal
// tokens are equal beginnings (as in vLLM, arXiv:2309.06180, section 4.4; its hash alone may
// collide, here the tokens are compared).
//
// Where the stages have archives, full blocks that were computed are also named by their tokens
// (cluster/kv_block_name.h) and kept there, and what is not found among the blocks may be found
// there: a sequence then takes a block for it, which its first step fills.
//
// Blocks with high numbers may lie on the disks of stages (cluster/kv_tiers.h): far ones. So low
// ones are taken first, and a far one only where no near one is free, findable ones included.

#include <cstdint>
#include <list>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "base/int_math.h"
#include "cluster/kv_block_name.h"
#include "coordinator/archive_index.h"

namespace caravan {

struct ArchivedKvBlock {
  uint32_t block = 0;
  KvBlockName name;
};

/// The blocks of one sequence in order of position. Only BlockManager changes it.
struct BlockTable {
  struct Copy {
    uint32_t from = 0;
    uint32_t to = 0;
  };
  std::vector<uint32_t> blocks;
  /// To be made before the sequence's first rows; `from` is kept until CopySent.
  std::optional<Copy> pending_copy;
  /// Blocks that are to be filled from the archives before the sequence's first rows, and those
  /// before them that are there, and are used now.
  std::vector<ArchivedKvBlock> pending_restores;
  std::vector<ArchivedKvBlock> pending_uses;

  int64_t num_published = 0;  // blocks at the front that are full and findable
  uint64_t last_content = 0;  // of the last of these; 0: none
  KvBlockName last_name;      // likewise, for the archives; none: the root
};

/// Not thread-safe.
class BlockManager {
 public:
  /// num_near: blocks with numbers below this are near. REQUIRES: 0 <= num_near <= num_blocks,
  /// block_tokens >= 1.
  BlockManager(int64_t num_blocks, int64_t num_near, int64_t block_tokens,
               const ArchiveContents& archive = {});
  /// Of near blocks only.
  BlockManager(int64_t num_blocks, int64_t block_tokens)
      : BlockManager(num_blocks, num_blocks, block_tokens) {}

  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()); }
  /// Blocks that nobody uses, and those of them that are still findable.
  int64_t free_blocks() const { return static_cast<int64_t>(blank_.size()) + cached_blocks(); }
  int64_t cached_blocks() const {
    return static_cast<int64_t>(unused_.size() + far_unused_.size());
  }
  int64_t BlocksFor(int64_t num_tokens) const { return CeilDiv(num_tokens, block_tokens_); }

  /// Fills an empty table with the longest beginning of `tokens` that is to be found, at most all
  /// of them but the last (whose logits somebody wants). Returns how many tokens that covers. Never
  /// keeps a Grow for `tokens` from succeeding that would have succeeded without it. reserve:
  /// blocks without which the caller would give it all back.
  int64_t Adopt(absl::Span<const int32_t> tokens, BlockTable& table, int64_t reserve = 0);

  /// Grows the table to hold `num_tokens`. False, and nothing changes, if blocks are lacking.
  bool Grow(int64_t num_tokens, BlockTable& table);

  /// The pending copy is on its way, in a step before any later one.
  void CopySent(BlockTable& table);
  /// So are the restores, in the step whose TakeKept has the uses.
  void ArchiveSent(BlockTable& table);

  /// Blocks to be archived, or used there, by the next step, before it does anything else to them.
  std::vector<ArchivedKvBlock> TakeKept() { return std::exchange(kept_, {}); }

  /// The archives lack something that they were taken to have.
  void ForgetArchive() { archive_.Clear(); }
  /// As ArchiveIndex::SetCapacity.
  void SetArchiveCapacity(int64_t capacity) { archive_.SetCapacity(capacity); }

  /// The keys and values of `tokens`, the sequence's first ones, are in its blocks now: others may
  /// find them.
  void Publish(absl::Span<const int32_t> tokens, BlockTable& table);

  /// The sequence needs its blocks no more. The table is empty afterwards.
  void Free(BlockTable& table);

  /// Aborts when the books are wrong. For tests: slow.
  void CheckInvariants() const;

 private:
  struct Block {
    int64_t num_users = 0;
    // What it holds, if findable (content != 0): its own name and that of the block before it.
    uint64_t content = 0;
    uint64_t parent = 0;
    std::vector<int32_t> tokens;           // at most block_tokens_
    std::list<uint32_t>::iterator unused;  // in UnusedOf, if findable and without users
  };

  absl::Span<const int32_t> BlockOf(absl::Span<const int32_t> tokens, int64_t index) const;
  /// Adopt, of full blocks behind those that are published.
  void AdoptArchived(absl::Span<const int32_t> tokens, BlockTable& table, int64_t reserve);
  std::optional<uint32_t> FindFull(uint64_t parent, absl::Span<const int32_t> tokens) const;
  void Use(uint32_t block);
  bool IsNear(uint32_t block) const { return block < num_near_; }
  std::list<uint32_t>& UnusedOf(uint32_t block) { return IsNear(block) ? unused_ : far_unused_; }
  std::optional<uint32_t> Take();
  void Release(uint32_t block);
  /// Returns the name of the content, which may be another block's that holds the same.
  uint64_t PublishBlock(uint32_t block, uint64_t parent, absl::Span<const int32_t> tokens);
  /// `block` is full and published, behind what has the name `before`. Returns its own.
  KvBlockName KeepBlock(uint32_t block, const KvBlockName& before,
                        absl::Span<const int32_t> tokens);
  void Unpublish(uint32_t block);

  const int64_t num_near_;
  const int64_t block_tokens_;
  std::vector<Block> blocks_;
  std::vector<uint32_t> blank_;     // no user, not findable; a heap, the lowest is taken next
  std::list<uint32_t> unused_;      // near, no user, findable; the first is taken next
  std::list<uint32_t> far_unused_;  // likewise, far
  uint64_t last_content_ = 0;
  ArchiveIndex archive_;
  std::vector<ArchivedKvBlock> kept_;                    // for TakeKept
  absl::flat_hash_map<uint64_t, uint32_t> full_blocks_;  // by a hash of parent and tokens
  // Findable blocks by parent and first token: after the root come all beginnings there are.
  absl::flat_hash_map<std::pair<uint64_t, int32_t>, std::vector<uint32_t>> children_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_BLOCK_MANAGER_H_
