#ifndef CARAVAN_WORKER_FILES_MODEL_CACHE_H_
#define CARAVAN_WORKER_FILES_MODEL_CACHE_H_

// A directory with the packed files that a worker's stages were loaded from, kept between its lives
// (docs/state.md has its layout). Which files a stage needs and how they come is the business of
// others.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "base/directory_lock.h"
#include "base/mutex.h"
#include "cluster/pack_files_service.h"
#include "model/pack/pack_manifest.h"

namespace caravan {

/// Thread-safe. Of one process: it holds a lock on the directory.
class ModelCache {
 public:
  struct Options {
    std::string directory;     // made if it is not there
    int64_t budget_bytes = 0;  // for all packed files in it; 0: what the disk has room for
  };

  /// Keeps files from being removed while it lives. May outlive no ModelCache.
  class Lease {
   public:
    ~Lease() { cache_->Release(paths_); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

   private:
    friend class ModelCache;
    Lease(ModelCache* cache, std::vector<std::string> paths)
        : cache_(cache), paths_(std::move(paths)) {}
    ModelCache* const cache_;
    const std::vector<std::string> paths_;
  };

  /// Errors: InvalidArgument - the directory cannot be made or used; FailedPrecondition - another
  ///         process uses it. Each names it.
  static absl::StatusOr<std::unique_ptr<ModelCache>> Open(const Options& options);

  const std::string& directory() const { return options_.directory; }

  /// Where the files of the model with that fingerprint lie, and their manifest.
  std::string DirectoryOf(uint64_t fingerprint) const;

  /// Makes that directory. Errors: InvalidArgument - it cannot be made; names it.
  absl::Status MakeDirectory(uint64_t fingerprint) const;

  /// Marks the files, there or still to come, as in use, and makes room for those that are not
  /// there: others are removed, the least recently used first, never one in use.
  /// Errors: ResourceExhausted - there is no such room, in the budget or on the disk: nothing was
  ///         removed; names the directory. REQUIRES: MakeDirectory.
  absl::StatusOr<std::unique_ptr<Lease>> Take(uint64_t fingerprint,
                                              const std::vector<PackedFile>& files);

  /// The disk gave back something else than these files: the next fetch compares each with its
  /// hashes, and brings anew what is wrong. Whoever has one open keeps it.
  void Doubt(const Lease& lease) const;

  /// The whole files of that model, its manifest among them.
  std::vector<ShelvedFile> List(uint64_t fingerprint) const;

 private:
  ModelCache(Options options, DirectoryLock lock)
      : options_(std::move(options)), lock_(std::move(lock)) {}
  void Release(const std::vector<std::string>& paths);

  const Options options_;
  const DirectoryLock lock_;

  Mutex mu_;
  std::map<std::string, int> in_use_ ABSL_GUARDED_BY(mu_);  // leases, by path
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_FILES_MODEL_CACHE_H_
