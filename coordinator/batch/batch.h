#ifndef CARAVAN_COORDINATOR_BATCH_BATCH_H_
#define CARAVAN_COORDINATOR_BATCH_BATCH_H_

// Files and batches as people see them: OpenAI's Files and Batch API, without its JSON. Plain
// values. Times are whole seconds since 1970.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace caravan {

struct FileObject {
  std::string id;  // "file-..."
  std::string filename;
  std::string purpose;  // "batch", "batch_output" (of errors too), or whatever its sender said
  int64_t bytes = 0;
  int64_t created_at = 0;
};

//               a line that is none
//   kValidating --------------------> kFailed
//     |     |     CancelBatch
//     |     +---------------------+-> kCancelling ---> kCancelled
//     v                           |
//   kInProgress ------------------+
//     | every line has ended
//     v
//   kCompleted
//
// OpenAI's "finalizing" lasts no time here: output and error file grow with the lines.
enum class BatchStatus { kValidating, kFailed, kInProgress, kCompleted, kCancelling, kCancelled };

/// As OpenAI spells it: "validating", "in_progress", ...
const char* BatchStatusName(BatchStatus status);
/// Nothing of it changes any more.
bool HasEnded(BatchStatus status);

/// Why a batch was not begun.
struct BatchError {
  std::string code;  // "invalid_json_line", "duplicate_custom_id", ...
  std::string message;
  std::optional<std::string> param;  // the line's field
  std::optional<int64_t> line;       // from 1; nullopt: the whole file
};

struct BatchCounts {
  int64_t total = 0;      // lines; 0 while it is validated
  int64_t completed = 0;  // in the output file
  int64_t failed = 0;     // in the error file
};

struct Batch {
  std::string id;             // "batch_..."
  std::string endpoint;       // "/v1/chat/completions" or "/v1/completions"
  std::string input_file_id;  // the file may be deleted once the batch is in progress
  std::map<std::string, std::string> metadata;
  BatchStatus status = BatchStatus::kValidating;
  std::vector<BatchError> errors;  // of kFailed; at most kMaxBatchErrors
  BatchCounts counts;
  int64_t created_at = 0;
  std::optional<int64_t> in_progress_at;
  std::optional<int64_t> finalizing_at;
  std::optional<int64_t> completed_at;
  std::optional<int64_t> failed_at;
  std::optional<int64_t> cancelling_at;
  std::optional<int64_t> cancelled_at;
  // Once it is kCompleted or kCancelled, where there is something in them.
  std::optional<std::string> output_file_id;
  std::optional<std::string> error_file_id;

  uint64_t version = 0;  // for BatchBook::WaitForChange; means nothing after a restart
};

/// Seconds since 1970, as files and batches tell them.
int64_t UnixNow();

/// As many of its errors a batch keeps; as many as help, of a file that is wrong from end to end.
inline constexpr int64_t kMaxBatchErrors = 100;
/// Largest file that is taken from outside.
inline constexpr int64_t kMaxUploadBytes = int64_t{128} << 20;
// OpenAI's limits.
inline constexpr int64_t kMaxBatchLines = 50'000;
inline constexpr int64_t kMaxMetadataPairs = 16;
inline constexpr int64_t kMaxMetadataKeyBytes = 64;
inline constexpr int64_t kMaxMetadataValueBytes = 512;

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_BATCH_BATCH_H_
