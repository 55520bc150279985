#ifndef CARAVAN_WORKER_KV_ARCHIVE_H_
#define CARAVAN_WORKER_KV_ARCHIVE_H_

// A stage's full KV blocks beyond its memory, by the tokens that they hold: what was computed once
// need not be computed again, by this stage or by whoever holds its layers later (docs/state.md,
// "KV archive").
//
// They lie in the worker's KvBlockStore, the layers of one block perhaps in several files. What is
// not there may be in the archives of other workers, and is fetched when it is wanted; and what is
// kept here may be sent to one of them besides (KvReplicator), which may change at any time.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/bounded_queue.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "cluster/kv_block_name.h"
#include "worker/kv_block_store.h"
#include "worker/kv_format.h"
#include "worker/kv_peer.h"
#include "worker/kv_replicator.h"

namespace caravan {

/// Names, Keep, Fetch and Restore are called by one thread at a time; the rest by any, unless it
/// says otherwise.
class KvArchive {
 public:
  /// Where a plan puts a stage's archive.
  struct Place {
    std::shared_ptr<KvBlockStore> store;         // null: there is none
    std::vector<std::shared_ptr<KvPeer>> peers;  // who may have blocks that are not there
    std::shared_ptr<KvPeer> replica;             // gets what is kept; null: nobody
    std::vector<LayerRange> incoming;            // of each block, what others send here
    int64_t replica_blocks = 0;                  // of this stage's, that the replica has room for
    /// What News has may have changed. Called without a lock by threads that use the archive, and
    /// by those of its own; may call News, and must not block.
    std::function<void()> on_change = [] {};
  };
  struct Options {
    Place place;  // with a store
    KvFormat format;
    LayerRange layers;  // of the stage
  };
  struct Counters {
    int64_t kept = 0;                 // blocks that were written
    int64_t restored_from_disk = 0;   // blocks
    int64_t restored_from_peers = 0;  // those of which some layers were fetched
    KvReplicator::Counters replicas;
  };

  /// What the coordinator is told when it changes.
  struct News {
    int64_t capacity = 0;
    uint64_t refused_by = 0;  // incarnation of the replica, if that takes nothing; else 0
  };

  /// How long it waits for what peers say that they have.
  static constexpr absl::Duration kListTimeout = absl::Seconds(5);
  /// What Fetch may wait for peers, all in all.
  static constexpr absl::Duration kMostFetching = absl::Seconds(60);

  /// Asks the peers, all at once, for what they have; one that does not answer has nothing.
  /// Errors: InvalidArgument - the budget holds no block, with what others send here of it.
  static absl::StatusOr<std::unique_ptr<KvArchive>> Open(const Options& options);
  /// Writes what waits.
  ~KvArchive();

  /// How many blocks the disk has room for within the budget, each with what others send here of
  /// it, beside what files of other splits took when `incoming` was said; 1 at least.
  int64_t capacity() const;
  News news() const;

  /// From now on the place's replica gets what is kept, and by and by what is here already, as far
  /// as it has room (KvReplicator); nothing changes for one of the incarnation that gets it now.
  /// And the place's `incoming` is what others send here. The rest of it is not read. May wait for
  /// a read of the disk. By one thread at a time, any.
  void SetReplica(const Place& place);

  /// Blocks whose layers are all here or with the peers, as far as is known, the least recently
  /// used first, at most `limit` of the newest.
  std::vector<KvBlockName> Names(size_t limit) const;

  /// Copies `layer` (counted from 0) of a block to `to`, or from there.
  using CopyOut = absl::FunctionRef<absl::Status(int layer, absl::Span<std::byte> to)>;
  using CopyIn = absl::FunctionRef<absl::Status(int layer, absl::Span<const std::byte> from)>;

  /// Copies the block out, and has it written meanwhile; waits while others are. One that is there
  /// counts as used. Where writing fails the block is not kept, with a warning once. Errors: those
  /// of `copy`.
  absl::Status Keep(const KvBlockName& name, CopyOut copy);

  /// Brings what these blocks lack here from the peers, as far as they have it, in few round trips
  /// and within kMostFetching; gives up on a peer that fails. All of them count as used now.
  void Fetch(absl::Span<const KvBlockName> names);

  /// Errors: NotFound - it is not here, or not whole; those of `copy`.
  absl::Status Restore(const KvBlockName& name, CopyIn copy);

  /// Ends a Fetch that is under way, and all that come later; nothing is replicated any more.
  void StopFetching();

  Counters counters() const;

  /// Waits until all that Keep took is written, and sent on. For tests.
  void Flush();

 private:
  struct Block {
    KvBlockName name;
    std::vector<std::byte> layers;  // those of the stage
  };
  // Of a block, layers that a peer has.
  struct Elsewhere {
    size_t peer = 0;  // of options_.place.peers
    LayerRange layers;
  };
  struct RemoteBlock {
    std::vector<Elsewhere> parts;
    absl::Duration unused;  // at listed_at_
  };
  // What one call is to bring.
  struct Errand {
    size_t peer = 0;
    std::vector<KvBlockPart> parts;
  };

  explicit KvArchive(const Options& options);

  /// Others send these layers of each block.
  void SetIncoming(absl::Span<const LayerRange> incoming);
  /// What the budget must hold of each block then, in bytes.
  static int64_t BlockBytes(const Options& options, absl::Span<const LayerRange> incoming);
  std::unique_ptr<KvReplicator> MakeReplicator(const Place& place) const;
  void ListPeers();
  void Write();  // what the writing thread does
  /// Whom to ask next for what `names` lack; nullopt: nobody.
  std::optional<Errand> NextErrand(absl::Span<const KvBlockName> names);
  /// Within `time_left`.
  void Run(const Errand& errand, absl::Duration time_left);
  /// Never waits.
  void Replicate(const KvBlockName& name);

  const Options options_;
  absl::Time listed_at_;                                  // constant once open, as is:
  absl::flat_hash_map<KvBlockName, RemoteBlock> remote_;  // but for the thread of Fetch
  std::vector<bool> given_up_;                            // by peer; of that thread
  absl::flat_hash_set<KvBlockName> fetched_;              // by the last Fetch; the same
  std::stop_source stop_;                                 // own synchronisation

  mutable Mutex mu_;
  CondVar written_;
  absl::flat_hash_set<KvBlockName> waiting_ ABSL_GUARDED_BY(mu_);  // blocks to be written
  bool warned_ ABSL_GUARDED_BY(mu_) = false;
  Counters counters_ ABSL_GUARDED_BY(mu_);         // of replicas, those of earlier replicators
  int64_t block_bytes_ ABSL_GUARDED_BY(mu_) = 0;   // as BlockBytes
  int64_t excess_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // as KvBlockStore::Prefer
  std::unique_ptr<KvReplicator> replicator_ ABSL_GUARDED_BY(mu_);  // null: nobody gets replicas
  BoundedQueue<Block> queue_;
  NamedThread writer_;  // last: it uses the above
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_ARCHIVE_H_
