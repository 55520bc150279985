#ifndef CARAVAN_WORKER_KV_ARCHIVE_H_
#define CARAVAN_WORKER_KV_ARCHIVE_H_

// Full KV blocks on disk, by the tokens that they hold: what a stage computed once need not be
// computed again, in this life of the process or in the next one (docs/state.md, "KV archive").
//
// A block is a file of its own, with the layers of the stage that wrote it; another stage of the
// same model takes from it the layers that it has, if all of them are there. The directory is the
// index: files appear whole (OutputFile), and their times say which was used last. Beyond the
// budget the least recently used go. Each layer carries a hash, so that what a disk breaks is
// missing, not wrong.
//
// Several stages, in one process or in several, may share a directory; each keeps to its budget by
// what it sees when it opens and what it adds, so that of two that fill one directory each has less
// than it was told: they should have directories of their own.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/bounded_queue.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "cluster/kv_block_name.h"

namespace caravan {

/// Keep and Restore are called by one thread; the rest by any.
class KvArchive {
 public:
  struct Options {
    std::string directory;
    int64_t budget_bytes = 0;
    std::string format;       // what a layer's bytes depend on but for names: "f16-64x576"
    int first_layer = 0;      // of the stage, counted in the model
    int num_layers = 0;       // with keys and values
    int64_t layer_bytes = 0;  // of a block
  };

  /// Makes the directory if it is not there, and looks through it.
  /// Errors: InvalidArgument - it cannot be made or read, or the budget holds no block; names it.
  static absl::StatusOr<std::unique_ptr<KvArchive>> Open(const Options& options);
  /// Writes what waits.
  ~KvArchive();

  /// How many blocks the budget holds.
  int64_t capacity() const { return capacity_; }
  /// Blocks that Restore finds, the least recently used first, at most `limit` of the newest.
  std::vector<KvBlockName> Names(size_t limit) const;

  /// Copies `layer` (counted from 0) of a block to `to`, or from there.
  using CopyOut = absl::FunctionRef<absl::Status(int layer, absl::Span<std::byte> to)>;
  using CopyIn = absl::FunctionRef<absl::Status(int layer, absl::Span<const std::byte> from)>;

  /// Copies the block out, and has it written meanwhile; waits while others are. One that is there
  /// counts as used. Where writing
  /// fails the block is not kept, with a warning once. Errors: those of `copy`.
  absl::Status Keep(const KvBlockName& name, CopyOut copy);

  /// Waits for it if it is being written.
  /// Errors: NotFound - it is not here, or not whole (then it is removed); those of `copy`.
  absl::Status Restore(const KvBlockName& name, CopyIn copy);

  /// Waits until all that Keep took is written. For tests.
  void Flush();

 private:
  struct File {
    std::string path;
    int64_t bytes = 0;
    int first_layer = 0;  // of those that it holds
    int num_layers = 0;
    std::filesystem::file_time_type time;  // when it was used last, as far as is known
  };
  // The least recently used first.
  using Files = std::list<std::pair<KvBlockName, File>>;
  struct Block {
    KvBlockName name;
    std::vector<std::byte> layers;  // [num_layers] of layer_bytes
  };

  KvArchive(const Options& options, Files files);

  std::string PathOf(const KvBlockName& name) const;
  bool Covers(const File& file) const;
  void Write();  // what the writing thread does
  absl::Status WriteBlock(const Block& block);
  void AddLocked(const KvBlockName& name, File file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Remove(const KvBlockName& name);
  /// It is used now.
  void TouchLocked(Files::iterator file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  /// What the file holds of the stage's layers, one after the other.
  absl::Status Read(const File& file, CopyIn layer) const;

  const Options options_;
  const int64_t capacity_;

  mutable Mutex mu_;
  CondVar written_;
  Files files_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<KvBlockName, Files::iterator> by_name_ ABSL_GUARDED_BY(mu_);
  int64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  absl::flat_hash_set<KvBlockName> waiting_ ABSL_GUARDED_BY(mu_);  // blocks to be written
  bool warned_ ABSL_GUARDED_BY(mu_) = false;

  BoundedQueue<Block> queue_;
  NamedThread writer_;  // last: it uses the above
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_ARCHIVE_H_
