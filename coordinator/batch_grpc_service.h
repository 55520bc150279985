#ifndef CARAVAN_COORDINATOR_BATCH_GRPC_SERVICE_H_
#define CARAVAN_COORDINATOR_BATCH_GRPC_SERVICE_H_

// Translates the Batches service's calls for the book of batches.

#include <atomic>
#include <list>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "caravan/v1/batches.grpc.pb.h"
#include "coordinator/batch/batch_book.h"

namespace caravan {

/// Thread-safe. Borrows the book. Every call has a thread of gRPC's, which may wait for the disk.
class BatchGrpcService final : public v1::Batches::Service {
 public:
  explicit BatchGrpcService(BatchBook* book, const Clock* clock = &SteadyClock())
      : book_(book), clock_(clock) {}

  /// Calls that wait end soon, with Unavailable, and so do new ones. Idempotent.
  void Stop() { stopping_ = true; }

  grpc::Status SubmitBatch(grpc::ServerContext* context,
                           grpc::ServerReader<v1::SubmitBatchRequest>* reader,
                           v1::SubmitBatchResponse* response) override;
  grpc::Status GetBatch(grpc::ServerContext* context, const v1::GetBatchRequest* request,
                        v1::GetBatchResponse* response) override;
  grpc::Status ListBatches(grpc::ServerContext* context, const v1::ListBatchesRequest* request,
                           v1::ListBatchesResponse* response) override;
  grpc::Status CancelBatch(grpc::ServerContext* context, const v1::CancelBatchRequest* request,
                           v1::CancelBatchResponse* response) override;
  grpc::Status WaitBatch(grpc::ServerContext* context, const v1::WaitBatchRequest* request,
                         grpc::ServerWriter<v1::WaitBatchResponse>* writer) override;
  grpc::Status ReadBatchOutput(grpc::ServerContext* context,
                               const v1::ReadBatchOutputRequest* request,
                               grpc::ServerWriter<v1::ReadBatchOutputResponse>* writer) override;

 private:
  /// A SubmitBatch under way.
  struct Upload {
    grpc::ServerContext* context;
    absl::Duration heard_at;  // its client's last piece
  };

  /// A place among the uploads; nullopt: all are taken. Those whose client is silent for long are
  /// ended then, and make room for the next who asks.
  std::optional<std::list<Upload>::iterator> EnterUpload(grpc::ServerContext* context);
  absl::Status Submit(Upload& upload, grpc::ServerReader<v1::SubmitBatchRequest>& reader,
                      v1::Batch& created);
  absl::Status Wait(grpc::ServerContext& context, const std::string& id,
                    grpc::ServerWriter<v1::WaitBatchResponse>& writer) const;
  absl::Status ReadOutput(const v1::ReadBatchOutputRequest& request,
                          grpc::ServerWriter<v1::ReadBatchOutputResponse>& writer) const;

  BatchBook* const book_;
  const Clock* const clock_;
  std::atomic<bool> stopping_{false};
  Mutex mu_;
  std::list<Upload> uploads_ ABSL_GUARDED_BY(mu_);
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_BATCH_GRPC_SERVICE_H_
