#ifndef CARAVAN_COORDINATOR_BATCH_BATCH_INPUT_H_
#define CARAVAN_COORDINATOR_BATCH_BATCH_INPUT_H_

// A batch's input file, line by line: {"custom_id", "method", "url", "body"}.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/batch/batch.h"
#include "coordinator/http/http_message.h"
#include "coordinator/openai/generation_request.h"
#include "coordinator/store/job_store.h"

namespace caravan {

/// Of a line, its end not counted: what one request over HTTP may have.
inline constexpr size_t kMaxBatchLineBytes = kMaxBodyBytes;

/// What the lines of a batch of this endpoint ask for; nullopt: there is no such endpoint.
std::optional<GenerationApi> BatchApi(absl::string_view endpoint);

/// A line of a batch of `endpoint`, without a number and a seed, or what is wrong with it. The body
/// is an object, of which nothing else is known yet.
std::variant<BatchLine, BatchError> ParseBatchLine(absl::string_view text,
                                                   absl::string_view endpoint);

/// Reads a stored file's lines, a piece of the file at a time. Not thread-safe. Borrows the store.
class LineReader {
 public:
  LineReader(const JobStore* store, std::string file_id)
      : store_(store), file_id_(std::move(file_id)) {}

  /// The next line, without its end; nullopt: there is none. Of one that is longer than
  /// kMaxBatchLineBytes, as much as shows that. Errors: as JobStore::ReadFile.
  absl::StatusOr<std::optional<std::string>> Next();
  /// Of the line that Next returned last, from 1.
  int64_t line_number() const { return line_number_; }

 private:
  const JobStore* const store_;
  const std::string file_id_;
  int64_t cursor_ = 0;
  std::string read_;  // and not returned yet, from begin_ on
  size_t begin_ = 0;
  int64_t line_number_ = 0;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_BATCH_BATCH_INPUT_H_
