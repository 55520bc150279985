#ifndef CARAVAN_COORDINATOR_ARCHIVE_INDEX_H_
#define CARAVAN_COORDINATOR_ARCHIVE_INDEX_H_

// Which KV blocks all stages of a pipeline have in their archives (worker/kv_archive.h), or can
// have from those of other workers. Stages are told alike what to keep and what to use, so that
// what one of them has, all have; each forgets what was used least recently, and here that happens
// a little before it does for the smallest of them. Where they differ all the same, because a disk
// was full or broke, a stage answers NotFound, and the index is cleared.

#include <cstdint>
#include <list>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/kv_block_name.h"

namespace caravan {

/// What a pipeline's archives hold when it begins to serve.
struct ArchiveContents {
  KvBlockName root;                // as NameKvRoot: what the first blocks of sequences follow
  int64_t capacity = 0;            // blocks; 0: there are no archives
  std::vector<KvBlockName> names;  // the least recently used first
};

/// What a worker says of its archive, with no more capacity than an index may take memory for.
/// Names that are none are left out, and so is what is beyond kMostArchivedNames. The root is not
/// said there.
ArchiveContents ArchiveFromProto(const v1::KvArchive& archive);

/// The capacity of it, in blocks.
int64_t ArchiveCapacity(const v1::KvArchive& archive);

/// Not thread-safe.
class ArchiveIndex {
 public:
  explicit ArchiveIndex(const ArchiveContents& contents);

  bool active() const { return capacity_ > 0; }
  const KvBlockName& root() const { return root_; }
  int64_t size() const { return static_cast<int64_t>(names_.size()); }

  bool Contains(const KvBlockName& name) const { return by_name_.contains(name); }
  /// The stages are told to keep or to use it: it is there, as what was used last, in place of what
  /// was used least recently if all is full. REQUIRES: active.
  void Use(const KvBlockName& name);
  /// The smallest of the stages has room for so many blocks now: what was used least recently goes
  /// as far as it must. Nothing changes where nothing is looked for. REQUIRES: capacity > 0.
  void SetCapacity(int64_t capacity);
  /// Something was not there. Nothing is, as far as is known; after the third time nothing is
  /// looked for any more.
  void Clear();

 private:
  void Shrink();

  const KvBlockName root_;
  int64_t capacity_;
  int clears_ = 0;
  std::list<KvBlockName> names_;  // the least recently used first
  absl::flat_hash_map<KvBlockName, std::list<KvBlockName>::iterator> by_name_;
};

/// Of what all of `stages` have; the order is that of the first. An empty list, or one with a stage
/// without archive (capacity 0), has none.
ArchiveContents CommonArchive(const KvBlockName& root, const std::vector<ArchiveContents>& stages);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_ARCHIVE_INDEX_H_
