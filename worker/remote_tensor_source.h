#ifndef CARAVAN_WORKER_REMOTE_TENSOR_SOURCE_H_
#define CARAVAN_WORKER_REMOTE_TENSOR_SOURCE_H_

// The coordinator's checkpoint, read over the network by a worker that has no copy.

#include <memory>
#include <stop_token>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "caravan/v1/model_files.grpc.pb.h"
#include "cluster/part_stream.h"
#include "cluster/serving_share.h"
#include "grpcpp/channel.h"
#include "model/tensor_source.h"

namespace caravan {

/// Thread-safe.
class RemoteTensorSource : public TensorSource {
 public:
  struct Options {
    std::shared_ptr<grpc::Channel> coordinator;
    uint64_t fingerprint = 0;  // of the model
    absl::Duration connect_timeout = absl::Seconds(10);
    // A coordinator that hangs for so long in the midst of a read ends it with DeadlineExceeded.
    absl::Duration part_timeout = kPartTimeout;
    // What this process gives to taking weights in while its own stage runs steps. Borrowed.
    ServingShare* share = nullptr;
    // Ends every call that is under way or comes later, with Cancelled.
    std::stop_token stop = {};
  };

  /// Asks which tensors there are.
  /// Errors: Unavailable, DeadlineExceeded - the coordinator does not answer; Aborted - it serves
  ///         another model by now; InvalidArgument - it sends what no checkpoint holds.
  static absl::StatusOr<std::unique_ptr<RemoteTensorSource>> Connect(Options options);

  const TensorInfo* Find(absl::string_view name) const override;
  /// A coordinator that serves gives parts only now and then: this then takes its time.
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override;

 private:
  explicit RemoteTensorSource(Options options)
      : options_(std::move(options)), stub_(v1::ModelFiles::NewStub(options_.coordinator)) {}

  const Options options_;
  const std::unique_ptr<v1::ModelFiles::Stub> stub_;
  absl::flat_hash_map<std::string, TensorInfo> tensors_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_REMOTE_TENSOR_SOURCE_H_
