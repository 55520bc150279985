#ifndef CARAVAN_COORDINATOR_CLUSTER_SERVICE_H_
#define CARAVAN_COORDINATOR_CLUSTER_SERVICE_H_

// Translates the Cluster service's calls for the ClusterController, on its loop.

#include "caravan/v1/cluster.grpc.pb.h"
#include "coordinator/cluster_controller.h"
#include "coordinator/control_loop.h"

namespace caravan {

/// Thread-safe. Borrows both.
class ClusterService final : public v1::Cluster::Service {
 public:
  ClusterService(ClusterController* controller, ControlLoop* loop)
      : controller_(controller), loop_(loop) {}

  grpc::Status Attend(grpc::ServerContext* context,
                      grpc::ServerReaderWriter<v1::WorkerOrder, v1::WorkerReport>* stream) override;
  grpc::Status GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest* request,
                         v1::GetStatusResponse* response) override;

 private:
  ClusterController* const controller_;  // used on loop_ alone
  ControlLoop* const loop_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_CLUSTER_SERVICE_H_
