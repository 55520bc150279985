#ifndef CARAVAN_COORDINATOR_MODEL_FILES_SERVICE_H_
#define CARAVAN_COORDINATOR_MODEL_FILES_SERVICE_H_

// Passes the model's tensors on to workers that do not hold it.

#include "caravan/v1/model_files.grpc.pb.h"
#include "model/stored_model.h"

namespace caravan {

/// Thread-safe. Borrows the model.
class ModelFilesService final : public v1::ModelFiles::Service {
 public:
  explicit ModelFilesService(const StoredModel* model) : model_(model) {}

  grpc::Status ListTensors(grpc::ServerContext* context, const v1::ListTensorsRequest* request,
                           v1::ListTensorsResponse* response) override;
  grpc::Status ReadTensor(grpc::ServerContext* context, const v1::ReadTensorRequest* request,
                          grpc::ServerWriter<v1::ReadTensorResponse>* writer) override;

 private:
  const StoredModel* const model_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_MODEL_FILES_SERVICE_H_
