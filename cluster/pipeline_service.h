#ifndef CARAVAN_CLUSTER_PIPELINE_SERVICE_H_
#define CARAVAN_CLUSTER_PIPELINE_SERVICE_H_

// The receiving end of the hops that lead here: says who it is, and hands on what arrives.

#include <cstdint>
#include <utility>

#include "caravan/v1/pipeline.grpc.pb.h"
#include "cluster/activation_channel.h"

namespace caravan {

/// Thread-safe. Several streams may be open at once (the old plan's and the new one's): each calls
/// the receiver from a thread of its own, which judges the steps' plans.
///
/// To stop: let the receiver return Unavailable, then call grpc::Server::Shutdown with a deadline,
/// which ends the streams that wait for a step. Without a deadline it waits until the senders
/// leave.
class PipelineService final : public v1::Pipeline::Service {
 public:
  PipelineService(uint64_t incarnation, StepReceiver receiver)
      : incarnation_(incarnation), receiver_(std::move(receiver)) {}

  /// Errors: the receiver's.
  grpc::Status Flow(grpc::ServerContext* context,
                    grpc::ServerReaderWriter<v1::FlowReply, v1::Step>* stream) override;

 private:
  const uint64_t incarnation_;
  const StepReceiver receiver_;
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_PIPELINE_SERVICE_H_
