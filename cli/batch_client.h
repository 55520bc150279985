#ifndef CARAVAN_CLI_BATCH_CLIENT_H_
#define CARAVAN_CLI_BATCH_CLIENT_H_

// The Batches service as a command sees it: a batch outlives its coordinator's process, so waiting
// for one outlives the connection.

#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "caravan/v1/batches.grpc.pb.h"
#include "cli/client.h"

namespace caravan {

/// Used by one thread; `stop`, of any thread, ends whatever call waits, with Cancelled. What
/// reconnects does so for flags.connect_timeout_s, and is then Unavailable.
class BatchClient {
 public:
  struct Options {
    ClientFlags flags;
    std::stop_token stop;
    /// The connection broke, and is sought again.
    std::function<void(const absl::Status& why)> on_away;
  };

  /// Errors: as Connect.
  static absl::StatusOr<std::unique_ptr<BatchClient>> Connect(Options options);

  /// Not tried again: where the answer is lost, there may be a batch or not.
  /// Errors: as Batches.SubmitBatch; Cancelled.
  absl::StatusOr<v1::Batch> Submit(const v1::BatchHeader& header, absl::string_view content);

  /// Tells `on_news` how the batch is, now and after each change, until it returns true or the
  /// batch has ended. Reconnects. Returns the batch as told last. Errors: as Batches.WaitBatch;
  /// Cancelled.
  absl::StatusOr<v1::Batch> Wait(const std::string& batch_id,
                                 std::function<bool(const v1::Batch&)> on_news);

  /// Gives `sink` a file of a batch that has ended, piece by piece; what it returns ends the
  /// reading unless OK. Reconnects. Errors: as Batches.ReadBatchOutput; Cancelled; the sink's.
  absl::Status Read(const std::string& batch_id, v1::BatchOutput output,
                    std::function<absl::Status(absl::string_view)> sink);

 private:
  explicit BatchClient(Options options) : options_(std::move(options)) {}

  /// Makes the call again as long as it ends because the coordinator went away.
  absl::Status Retry(absl::FunctionRef<absl::Status(grpc::ClientContext&, bool& heard)> call);

  const Options options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Batches::Stub> batches_;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_BATCH_CLIENT_H_
