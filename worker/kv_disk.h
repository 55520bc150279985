#ifndef CARAVAN_WORKER_KV_DISK_H_
#define CARAVAN_WORKER_KV_DISK_H_

// The blocks of a KV cache that lie on disk, in a file without a name, and the memory through which
// a step uses them, one layer at a time: each block has a place for the layer that is computed and
// one for the next layer, which is read meanwhile. What a layer adds to its blocks is written back
// before the next one begins.
//
//   BeginStep, then for each layer: Load -> its rows are computed on -> Store
//
// A step that fails on the way leaves the blocks as its last Store left them. Nobody else can write
// to the file, so what is read is not compared with a hash.
//
// Used by one thread at a time.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/buffer.h"
#include "base/io/direct_file.h"
#include "base/io/read_queue.h"
#include "base/mutex.h"
#include "base/thread_pool.h"
#include "cluster/kv_tiers.h"

namespace caravan {

/// What a step does with a block: rows [0, old_rows) are read, [old_rows, rows) written before
/// that.
struct KvBlockUse {
  int64_t block = 0;
  int64_t old_rows = 0;
  int64_t rows = 0;
};

class KvDisk {
 public:
  struct Options {
    KvBlockShape shape;
    int64_t row_bytes = 0;  // of one layer of one token
    int64_t num_blocks = 0;
    std::string directory;  // where the file lies
    // Reads the file; outlives this object. Null: a queue of its own.
    ReadQueue* reads = nullptr;
  };

  /// Errors: as DirectFile::CreateScratch and ReadQueue::Create; ResourceExhausted - no memory.
  static absl::StatusOr<std::unique_ptr<KvDisk>> Create(const Options& options);
  /// Waits for the reads under way.
  ~KvDisk();

  int64_t num_blocks() const { return options_.num_blocks; }

  /// Where a layer of a block is while it is loaded.
  std::byte* LayerOfBlock(int64_t block, int layer) const;

  /// The blocks that the next layers use. One that several sequences share may come several times;
  /// then none of them adds rows to it.
  void BeginStep(absl::Span<const KvBlockUse> uses);

  /// Brings the old rows of `layer` into memory, and begins to read those of `next`, unless it is
  /// -1. REQUIRES: the layer that was loaded before is stored, or its step has failed.
  /// Errors: the disk's, with the place.
  absl::Status Load(int layer, int next);

  /// Writes the new rows of `layer`, trying as often as reads are tried. REQUIRES: it is loaded.
  /// Errors: the disk's, with the place; the rows may be written in part.
  absl::Status Store(int layer);

  /// Between steps: reads a layer of a block, or writes it, as a whole. In memory it is at
  /// LayerOfBlock.
  /// Errors: the disk's, with the place.
  absl::Status ReadLayer(int64_t block, int layer);
  absl::Status WriteLayer(int64_t block, int layer);

 private:
  KvDisk(const Options& options, std::unique_ptr<DirectFile> file, Buffer memory);

  int64_t OffsetOf(int64_t block, int layer) const;
  /// Begins to read the old rows of `layer`.
  void BeginLoad(int layer);
  /// Waits for that. Errors: of the read that failed first.
  absl::Status FinishLoad();

  const Options options_;
  const std::unique_ptr<DirectFile> file_;
  const int64_t layer_bytes_;     // of a block, in file and memory
  const Buffer memory_;           // [2, num_blocks] of layer_bytes_
  std::vector<KvBlockUse> uses_;  // of the step: ascending, each block once
  int loading_ = -1;              // the layer that is read, or has been; -1: none
  ThreadPool writers_;

  Mutex mu_;
  CondVar read_ended_;
  int reads_under_way_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status read_status_ ABSL_GUARDED_BY(mu_);  // of the first that failed

  std::unique_ptr<ReadQueue> own_reads_;  // last: its threads use the above
  ReadQueue* reads_ = nullptr;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_DISK_H_
