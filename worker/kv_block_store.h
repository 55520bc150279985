#ifndef CARAVAN_WORKER_KV_BLOCK_STORE_H_
#define CARAVAN_WORKER_KV_BLOCK_STORE_H_

// A worker's directory of full KV blocks (docs/state.md, "KV archive"): those of its stages, and
// those that other workers send it. It outlives stages and sessions.
//
// A file holds some consecutive layers of one block; what is asked for may lie in several files.
// The directory is the index: files appear whole (OutputFile), and their times say which was used
// last. All of them share one budget, whoever they are from; beyond it the least recently used go.
// A disk that is full before that makes the budget smaller. Each layer carries a hash, so that what
// a disk breaks is missing, not wrong.

#include <atomic>
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
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/directory_lock.h"
#include "base/mutex.h"
#include "cluster/kv_block_name.h"
#include "worker/kv_format.h"

namespace caravan {

/// Layers of one block.
struct KvBlockPart {
  KvBlockName name;
  LayerRange layers;

  bool operator==(const KvBlockPart&) const = default;
};

/// A part that an archive has, for how long nobody has used it.
struct ListedKvPart {
  KvBlockPart part;
  absl::Duration unused;
};

/// XXH3 of 64 bits.
uint64_t HashKvLayer(absl::Span<const std::byte> layer);

/// Thread-safe.
class KvBlockStore {
 public:
  /// Makes the directory if it is not there, and looks through it; beyond the budget the least
  /// recently used blocks are removed.
  /// Errors: InvalidArgument - it cannot be made, locked or read; FailedPrecondition - another
  ///         process has it. Each names it.
  static absl::StatusOr<std::unique_ptr<KvBlockStore>> Open(const std::string& directory,
                                                            int64_t budget_bytes);
  KvBlockStore(const KvBlockStore&) = delete;
  KvBlockStore& operator=(const KvBlockStore&) = delete;

  int64_t budget_bytes() const { return budget_bytes_; }
  /// What of the budget the disk has room for, as far as is known. Never waits for the disk.
  int64_t room_bytes() const { return room_bytes_; }
  /// Of a file.
  static int64_t FileBytes(const KvFormat& format, int num_layers);

  /// What is not there of `part`. The files that have the rest of it count as used now.
  std::vector<LayerRange> Use(const KvFormat& format, const KvBlockPart& part);

  /// `layers`: those of the part, one after the other. What is there already counts as used; files
  /// that hold nothing else are replaced. On a full disk the least recently used make room first.
  /// REQUIRES: layers.size() == part.layers.num * format.layer_bytes().
  /// Errors: InvalidArgument - more than the budget holds, or as OutputFile; ResourceExhausted -
  /// the
  ///         disk is full all the same; DataLoss - it fails.
  absl::Status Write(const KvFormat& format, const KvBlockPart& part,
                     absl::Span<const std::byte> layers);

  /// Shows each layer, counted from 0 in the part, in order and perhaps more than once. A file that
  /// is not what was written is removed. Does not count as use.
  /// Errors: NotFound - some layer is in no file; those of `show`.
  using Show = absl::FunctionRef<absl::Status(int layer, absl::Span<const std::byte> bytes)>;
  absl::Status Read(const KvFormat& format, const KvBlockPart& part, Show show);
  /// The same, one layer behind the other in `layers`, which takes their size.
  absl::Status ReadWhole(const KvFormat& format, const KvBlockPart& part,
                         std::vector<std::byte>& layers);

  /// What of `layers` is there, a part a file, the least recently used first; of too many the
  /// latest `limit`.
  std::vector<ListedKvPart> List(const KvFormat& format, const LayerRange& layers,
                                 size_t limit) const;

  /// Files that are there and without layers of these ranges go before those with some, in the
  /// order of their use otherwise; what is written or used later counts as used last, whatever its
  /// layers. Returns by how much the files of each block among those with some exceed
  /// `block_bytes`, summed up.
  int64_t Prefer(const KvFormat& format, absl::Span<const LayerRange> ranges, int64_t block_bytes);

 private:
  struct Key {
    KvFormat format;
    KvBlockName name;

    bool operator==(const Key&) const = default;
    template <typename H>
    friend H AbslHashValue(H h, const Key& key) {
      return H::combine(std::move(h), key.format, key.name);
    }
  };
  struct File {
    Key key;
    LayerRange layers;
    std::filesystem::file_time_type time;  // when it was used last

    int64_t bytes() const { return FileBytes(key.format, layers.num); }
  };
  // The least recently used first.
  using Files = std::list<File>;

  KvBlockStore(std::string directory, int64_t budget_bytes, DirectoryLock lock)
      : directory_(std::move(directory)),
        budget_bytes_(budget_bytes),
        lock_(std::move(lock)),
        room_bytes_(budget_bytes) {}

  absl::Status LookThrough();
  /// Makes room for a file of so many bytes on a disk that is full.
  void MakeRoom(int64_t bytes);
  std::string PathOf(const Key& key, const LayerRange& layers) const;
  absl::Status WriteFile(const Key& key, const LayerRange& layers,
                         absl::Span<const std::byte> bytes);
  /// Shows layers of the part from `done` on, which counts those that were shown, as far as the
  /// file has them.
  absl::Status ReadFile(const File& file, const LayerRange& layers, int& done, Show show,
                        absl::Status& shown) const;
  std::vector<LayerRange> UseLocked(const KvFormat& format, const KvBlockPart& part)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddLocked(File file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RemoveLocked(Files::iterator file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TouchLocked(Files::iterator file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Remove(const File& file);

  const std::string directory_;
  const int64_t budget_bytes_;
  const DirectoryLock lock_;

  mutable Mutex mu_;
  CondVar written_;
  Files files_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Key, std::vector<Files::iterator>> by_key_ ABSL_GUARDED_BY(mu_);
  int64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  std::atomic<int64_t> room_bytes_;  // at most budget_bytes_; changed under mu_ only
  absl::flat_hash_set<std::string> writing_ ABSL_GUARDED_BY(mu_);  // paths
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_BLOCK_STORE_H_
