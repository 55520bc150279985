#ifndef CARAVAN_WORKER_EXPERTS_ROUTING_TRACE_H_
#define CARAVAN_WORKER_EXPERTS_ROUTING_TRACE_H_

// What a stage's routers chose, in a file: docs/routing-trace.md has the format. It holds no text
// and no activations.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/file.h"
#include "worker/experts/routing_observer.h"

namespace caravan {

/// Of which model and stage a trace is.
struct RoutingTraceHeader {
  uint64_t model_fingerprint = 0;
  int first_layer = 0;  // of those with experts that the stage has
  int num_layers = 0;
  int n_routed_experts = 0;
  int num_experts_per_tok = 0;
  friend bool operator==(const RoutingTraceHeader&, const RoutingTraceHeader&) = default;
};

/// Used by one thread at a time.
class RoutingTraceWriter : public RoutingObserver {
 public:
  /// Makes the file, or goes on with one of the same header; a torn block at its end is cut off,
  /// which a warning says. The file is locked against other writers.
  /// Errors: InvalidArgument - `header` is out of the format's range, the file cannot be made or is
  ///         no trace, is another model's or stage's, or somebody else writes it; as ReadableFile::
  ///         Open. Each names the path.
  static absl::StatusOr<std::unique_ptr<RoutingTraceWriter>> Open(const std::string& path,
                                                                  const RoutingTraceHeader& header);
  /// Writes what is left.
  ~RoutingTraceWriter() override;
  RoutingTraceWriter(const RoutingTraceWriter&) = delete;
  RoutingTraceWriter& operator=(const RoutingTraceWriter&) = delete;

  /// Mostly only copies: every 64 KiB are written at once. When that fails, a warning says so and
  /// nothing more is recorded. REQUIRES: what the header says.
  void OnRouting(int layer, int64_t num_rows, absl::Span<const int32_t> expert_ids,
                 absl::Span<const float> weights) override;

 private:
  RoutingTraceWriter(std::string path, int fd, const RoutingTraceHeader& header);
  void WriteBlock();

  const std::string path_;
  const int fd_;
  const RoutingTraceHeader header_;
  std::string block_;  // its head, then entries
  bool failed_ = false;
};

/// Used by one thread at a time.
class RoutingTraceReader {
 public:
  /// Errors: InvalidArgument - no trace, or of another version; as ReadableFile::Open. Each names
  /// the path.
  static absl::StatusOr<std::unique_ptr<RoutingTraceReader>> Open(const std::string& path);

  const RoutingTraceHeader& header() const { return header_; }

  /// Shows `observer` all that was recorded when the file was opened. Returns how many bytes behind
  /// the last whole block were ignored: those of a block that its writer could not end.
  /// Errors: InvalidArgument - a damaged block, of which `observer` has seen at most its first
  ///         entries; names path and offset. DataLoss - the disk failed.
  absl::StatusOr<int64_t> Read(RoutingObserver& observer) const;

 private:
  RoutingTraceReader(std::unique_ptr<ReadableFile> file, const RoutingTraceHeader& header)
      : file_(std::move(file)), header_(header) {}
  absl::Status ReadBlock(int64_t offset, absl::Span<const std::byte> entries,
                         RoutingObserver& observer) const;

  const std::unique_ptr<ReadableFile> file_;
  const RoutingTraceHeader header_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_ROUTING_TRACE_H_
