#ifndef CARAVAN_COORDINATOR_STORE_JOB_STORE_H_
#define CARAVAN_COORDINATOR_STORE_JOB_STORE_H_

// What must outlive the coordinator, in one SQLite file: files, batches, their lines that have not
// ended with what was generated for them, and which job ids were given. docs/state.md describes the
// tables. Knows nothing of what the lines say.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/mutex.h"
#include "caravan/v1/state.pb.h"
#include "coordinator/batch/batch.h"
#include "coordinator/store/database.h"

namespace caravan {

/// A batch that has not ended, for who works on it. `number` is its name inside the database.
struct OpenBatch {
  int64_t number = 0;  // grows with every batch
  std::string id;
  std::string endpoint;
  std::string input_file_id;
  BatchStatus status = BatchStatus::kValidating;
  bool begun = false;  // has been kInProgress
};

/// A line that has not ended.
struct BatchLine {
  int64_t number = 0;  // in the file, from 1
  std::string custom_id;
  std::string body;        // JSON text
  uint64_t draw_seed = 0;  // Generation::Create's
};

/// One line of one batch, by its OpenBatch::number.
struct LineRef {
  int64_t batch = 0;
  int64_t line = 0;
};

/// What a choice of a line has grown by.
struct LineGrowth {
  LineRef where;
  int64_t choice = 0;
  int64_t position = 0;  // of growth's first token, in the choice's reply
  v1::StoredGrowth growth;
};

/// What a line came to.
struct LineResult {
  LineRef where;
  bool failed = false;
  std::string text;  // of the output file, or of the error file, with its line break
};

/// Thread-safe: one call at a time. Each call that writes is one transaction, on the disk when it
/// returns. Errors of all: as Database. Times are seconds since 1970.
class JobStore {
 public:
  /// Errors: as Database::Open.
  static absl::StatusOr<std::unique_ptr<JobStore>> Open(const std::string& path);

  const std::string& path() const { return path_; }

  /// What another model has generated is forgotten: its lines start over. `fingerprint` is the
  /// model's that runs lines from now on.
  absl::Status UseModel(uint64_t fingerprint);

  /// The first of `count` job ids that were never given before.
  absl::StatusOr<uint64_t> ReserveJobIds(uint64_t count);

  // Files.

  /// REQUIRES: the id is new; file.bytes is content's size.
  absl::Status AddFile(const FileObject& file, absl::string_view content);
  /// Errors: NotFound.
  absl::StatusOr<FileObject> GetFile(const std::string& id) const;
  /// At most `limit`, from behind the file `after` (empty: from the beginning) on; of any purpose
  /// if that is empty. Errors: NotFound - `after`.
  absl::StatusOr<std::vector<FileObject>> ListFiles(const std::string& after, int64_t limit,
                                                    const std::string& purpose,
                                                    bool ascending) const;
  /// As BatchBook::ReadFile.
  absl::StatusOr<std::string> ReadFile(const std::string& id, int64_t& cursor) const;
  /// Errors: NotFound; FailedPrecondition - a batch is being made of it.
  absl::Status DeleteFile(const std::string& id);

  // Batches.

  /// REQUIRES: the id is new; the status is kValidating.
  absl::Status AddBatch(const Batch& batch);
  /// Errors: NotFound.
  absl::StatusOr<Batch> GetBatch(const std::string& id) const;
  /// At most `limit`, newest first, from behind `after` (empty: the newest) on.
  /// Errors: NotFound - `after`.
  absl::StatusOr<std::vector<Batch>> ListBatches(const std::string& after, int64_t limit) const;
  /// kValidating and kInProgress become kCancelling. Errors: NotFound.
  absl::Status CancelBatch(const std::string& id, int64_t now);

  /// Oldest first.
  absl::StatusOr<std::vector<OpenBatch>> OpenBatches() const;
  /// Forgets the lines of a batch that was being validated.
  absl::Status ClearLines(int64_t batch);
  /// False for each whose custom_id an earlier line of the batch has, and which is left out.
  absl::StatusOr<std::vector<bool>> AddLines(int64_t batch, const std::vector<BatchLine>& lines);
  /// From kValidating to kInProgress; the lines that were added are all.
  absl::Status BeginBatch(int64_t batch, int64_t now);
  /// From kValidating to kFailed; its lines are forgotten.
  absl::Status FailBatch(int64_t batch, const std::vector<BatchError>& errors, int64_t now);
  /// From kCancelling to kCancelled, and from kInProgress to kCompleted, if no line is left.
  absl::Status EndBatch(int64_t batch, int64_t now);

  // Lines.

  /// The first one behind line `after` (0: the first of all) that has not ended.
  absl::StatusOr<std::optional<BatchLine>> NextLine(int64_t batch, int64_t after) const;
  /// What was recorded of its choices, each in order of position.
  absl::StatusOr<std::vector<LineGrowth>> ReadGrowth(LineRef line) const;
  /// Adds to what is known of running lines (what stood in the same place goes), and ends others: a
  /// result goes to the output or the error file, in the place of its line, and the line with its
  /// growth is forgotten. A batch whose last line ends is ended. One transaction.
  absl::Status Record(const std::vector<LineGrowth>& growth, const std::vector<LineResult>& results,
                      int64_t now);

 private:
  explicit JobStore(std::unique_ptr<Database> database);

  absl::Status EndLine(const LineResult& result) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status EndBatchLocked(int64_t batch, int64_t now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status ForgetLines(int64_t batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  /// Of the file or batch `id`. Errors: NotFound - names it as `noun`.
  absl::StatusOr<int64_t> NumberOf(const char* table, const char* noun, const std::string& id) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string path_;
  mutable Mutex mu_;
  const std::unique_ptr<Database> database_ ABSL_PT_GUARDED_BY(mu_);
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_STORE_JOB_STORE_H_
