#ifndef CARAVAN_COORDINATOR_BATCH_BATCH_BOOK_H_
#define CARAVAN_COORDINATOR_BATCH_BATCH_BOOK_H_

// The book of files and batches that HTTP and gRPC write into and read from. What a call has
// returned is on disk and outlives the process. BatchRunner does the work that the book tells of.

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "coordinator/batch/batch.h"

namespace caravan {

class JobStore;

/// Thread-safe. Every call may wait for the disk: keep it from threads that serve streams. Errors
/// of all, which name the file: Unavailable - the disk is full; DataLoss - the database is
/// damaged; Internal - it failed otherwise. InvalidArgument names the field as ParamError does.
class BatchBook {
 public:
  struct NewFile {
    std::string filename;
    std::string purpose = "batch";
  };
  struct NewBatch {
    std::string input_file_id;
    std::string endpoint;
    std::map<std::string, std::string> metadata;
  };
  struct FileQuery {
    std::string after;  // a file's id: only what comes behind it; empty: from the beginning
    int64_t limit = 10'000;
    std::string purpose;     // only of this one; empty: of all
    bool ascending = false;  // oldest first
  };
  struct FilePage {
    std::vector<FileObject> files;
    bool has_more = false;
  };
  struct BatchPage {
    std::vector<Batch> batches;  // newest first
    bool has_more = false;
  };

  /// Borrows the store.
  explicit BatchBook(JobStore* store);

  /// Errors: InvalidArgument - filename or purpose is empty or over 512 bytes, or not UTF-8.
  absl::StatusOr<FileObject> AddFile(const NewFile& file, absl::string_view content);
  /// Errors: NotFound.
  absl::StatusOr<FileObject> GetFile(const std::string& id) const;
  /// Errors: NotFound - no file has the id `after`; InvalidArgument - limit is less than 1.
  absl::StatusOr<FilePage> ListFiles(const FileQuery& query) const;
  /// The next piece of the file, of about 1 MiB at most (more where one line has more); empty at
  /// the end. `cursor`, 0 at first, moves on; it is no offset.
  /// Errors: NotFound - also when the file was deleted meanwhile.
  absl::StatusOr<std::string> ReadFile(const std::string& id, int64_t& cursor) const;
  /// The whole file. Errors: as ReadFile.
  absl::StatusOr<std::string> FileContent(const std::string& id) const;
  /// Errors: NotFound; FailedPrecondition - a batch is still being made of it.
  absl::Status DeleteFile(const std::string& id);

  /// The batch is kValidating; what is wrong with the file's lines shows later.
  /// Errors: InvalidArgument - no such file, a file of another purpose than "batch", another
  ///         endpoint than Batch::endpoint names, or too much metadata.
  absl::StatusOr<Batch> CreateBatch(const NewBatch& batch);
  /// Errors: NotFound.
  absl::StatusOr<Batch> GetBatch(const std::string& id) const;
  /// Newest first; `after`: a batch's id, only what is older; empty: from the newest.
  /// Errors: NotFound - no batch has the id `after`; InvalidArgument - limit is less than 1.
  absl::StatusOr<BatchPage> ListBatches(const std::string& after, int64_t limit) const;
  /// It is kCancelling then, or kCancelled already; its lines that run end soon. Idempotent.
  /// Errors: NotFound; FailedPrecondition - it is kCompleted or kFailed, or about to be.
  absl::StatusOr<Batch> CancelBatch(const std::string& id);

  /// GetBatch, but waits until something changed since `version` (Batch::version of an earlier
  /// answer), `timeout` has passed, or the batch has ended.
  absl::StatusOr<Batch> WaitForChange(const std::string& id, uint64_t version,
                                      absl::Duration timeout) const;

  // The runner's side.

  /// `on_work` is called when a batch was created or is to be cancelled: by the caller of that,
  /// without a lock; it must not block, and may still be called once after it was replaced.
  void SetListener(std::function<void()> on_work);
  /// Something of the batch has changed in the store.
  void Changed(const std::string& id);

 private:
  void TellRunner();
  uint64_t VersionOf(const std::string& id) const;
  uint64_t VersionLocked(const std::string& id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  JobStore* const store_;

  mutable Mutex mu_;
  mutable CondVar changed_;
  uint64_t last_version_ ABSL_GUARDED_BY(mu_) = 1;
  std::map<std::string, uint64_t> versions_ ABSL_GUARDED_BY(mu_);  // by batch; 1 if not there
  std::function<void()> on_work_ ABSL_GUARDED_BY(mu_);
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_BATCH_BATCH_BOOK_H_
