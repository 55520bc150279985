#include "cluster/pipeline_service.h"

#include "cluster/grpc_status.h"

namespace caravan {

grpc::Status PipelineService::Flow(grpc::ServerContext* /*context*/,
                                   grpc::ServerReaderWriter<v1::FlowReply, v1::Step>* stream) {
  v1::FlowReply reply;
  reply.set_incarnation(incarnation_);
  stream->Write(reply);  // When the sender is already gone, so is the stream that Read sees.
  v1::Step step;
  while (stream->Read(&step)) {
    const absl::Status received = receiver_(std::move(step));
    if (!received.ok()) return ToGrpcStatus(received);
    step = v1::Step();
  }
  return grpc::Status::OK;
}

}  // namespace caravan
