#ifndef CARAVAN_COORDINATOR_MODEL_FILES_SERVICE_H_
#define CARAVAN_COORDINATOR_MODEL_FILES_SERVICE_H_

// Passes the model's tensors on to workers that do not hold it.

#include "caravan/v1/model_files.grpc.pb.h"
#include "cluster/serving_share.h"
#include "model/stored_model.h"

namespace caravan {

/// Thread-safe.
class ModelFilesService final : public v1::ModelFiles::Service {
 public:
  /// Borrows both. `share` is what the coordinator gives of its time to passing weights on, in
  /// whatever form.
  ModelFilesService(const StoredModel* model, ServingShare* share) : model_(model), share_(share) {}

  grpc::Status ListTensors(grpc::ServerContext* context, const v1::ListTensorsRequest* request,
                           v1::ListTensorsResponse* response) override;
  grpc::Status ReadTensor(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::ReadTensorResponse, v1::ReadTensorRequest>* stream) override;

 private:
  const StoredModel* const model_;
  ServingShare* const share_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_MODEL_FILES_SERVICE_H_
