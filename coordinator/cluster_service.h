#ifndef CARAVAN_COORDINATOR_CLUSTER_SERVICE_H_
#define CARAVAN_COORDINATOR_CLUSTER_SERVICE_H_

// Translates the Cluster service's calls for the ClusterController, on its loop.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "caravan/v1/cluster.grpc.pb.h"
#include "cluster/worker_id.h"
#include "coordinator/cluster_controller.h"
#include "coordinator/control_loop.h"

namespace caravan {

/// Thread-safe. Borrows both.
class ClusterService final : public v1::Cluster::Service {
 public:
  using AttendStream = grpc::ServerReaderWriter<v1::WorkerOrder, v1::WorkerReport>;

  /// A caller of Attend that has not registered within `registration_timeout` is cut off: it holds
  /// a thread.
  ClusterService(ClusterController* controller, ControlLoop* loop,
                 absl::Duration registration_timeout = absl::Seconds(10))
      : controller_(controller), loop_(loop), registration_timeout_(registration_timeout) {}

  /// Errors: InvalidArgument - the first report is no registration; Cancelled - none came in time,
  ///         or the controller hung up; Unavailable - the coordinator leaves, or the worker takes
  ///         no orders; as ClusterController::Join and Report.
  grpc::Status Attend(grpc::ServerContext* context, AttendStream* stream) override;
  grpc::Status GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest* request,
                         v1::GetStatusResponse* response) override;
  grpc::Status Drain(grpc::ServerContext* context, const v1::DrainRequest* request,
                     v1::DrainResponse* response) override;

 private:
  struct Link;
  struct Attendee {
    WorkerId id{};
    uint64_t incarnation = 0;
  };

  /// Hears the registration and has the worker join.
  absl::StatusOr<Attendee> Register(const grpc::ServerContext& context, AttendStream& stream,
                                    const std::shared_ptr<Link>& link);
  /// Hands its reports on until one is refused, or they end.
  absl::Status HearReports(const Attendee& worker, AttendStream& stream, const Link& link);

  ClusterController* const controller_;  // used on loop_ alone
  ControlLoop* const loop_;
  const absl::Duration registration_timeout_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_CLUSTER_SERVICE_H_
