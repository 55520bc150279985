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
#include "model/tensor_source.h"

namespace caravan {

/// Thread-safe. A stop request ends every call that is under way or comes later, with Cancelled.
class RemoteTensorSource : public TensorSource {
 public:
  /// Asks which tensors there are.
  /// Errors: Unavailable, DeadlineExceeded - the coordinator does not answer; Aborted - it serves
  ///         another model by now; InvalidArgument - it sends what no checkpoint holds.
  static absl::StatusOr<std::unique_ptr<RemoteTensorSource>> Connect(
      const std::shared_ptr<grpc::Channel>& coordinator, uint64_t fingerprint,
      absl::Duration timeout, std::stop_token stop);

  const TensorInfo* Find(absl::string_view name) const override;
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override;

 private:
  RemoteTensorSource(std::unique_ptr<v1::ModelFiles::Stub> stub, uint64_t fingerprint,
                     std::stop_token stop)
      : stub_(std::move(stub)), fingerprint_(fingerprint), stop_(std::move(stop)) {}

  const std::unique_ptr<v1::ModelFiles::Stub> stub_;
  const uint64_t fingerprint_;
  const std::stop_token stop_;
  absl::flat_hash_map<std::string, TensorInfo> tensors_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_REMOTE_TENSOR_SOURCE_H_
