#ifndef CARAVAN_COORDINATOR_JOB_SERVICE_H_
#define CARAVAN_COORDINATOR_JOB_SERVICE_H_

// Translates the Jobs service's calls: text to token ids for the driver, and its tokens back to
// text.

#include "base/clock.h"
#include "caravan/v1/jobs.grpc.pb.h"
#include "coordinator/pipeline_driver.h"
#include "model/text_model.h"

namespace caravan {

/// Thread-safe. Borrows everything.
class JobService final : public v1::Jobs::Service {
 public:
  JobService(const TextModel* text, PipelineDriver* driver, const Clock* clock)
      : text_(text), driver_(driver), clock_(clock) {}

  grpc::Status Submit(grpc::ServerContext* context, const v1::SubmitRequest* request,
                      grpc::ServerWriter<v1::JobEvent>* writer) override;
  grpc::Status Cancel(grpc::ServerContext* context, const v1::CancelRequest* request,
                      v1::CancelResponse* response) override;
  grpc::Status List(grpc::ServerContext* context, const v1::ListRequest* request,
                    v1::ListResponse* response) override;

 private:
  const TextModel* const text_;
  PipelineDriver* const driver_;
  const Clock* const clock_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_JOB_SERVICE_H_
