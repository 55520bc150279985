#include "cluster/pipeline_service.h"

#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cluster/call_guard.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

StepSender SenderOf(const grpc::ServerContext& context) {
  StepSender sender;
  const auto incarnation = context.client_metadata().find(kSenderIncarnationKey);
  if (incarnation != context.client_metadata().end()) {
    const grpc::string_ref& text = incarnation->second;
    if (!absl::SimpleAtoi(absl::string_view(text.data(), text.size()), &sender.incarnation)) {
      sender.incarnation = 0;
    }
  }
  const std::optional<Identity> identity = IdentityOfPeer(context.auth_context().get());
  if (identity.has_value()) sender.identity = ToString(*identity);
  return sender;
}

}  // namespace

grpc::Status PipelineService::Flow(grpc::ServerContext* context,
                                   grpc::ServerReaderWriter<v1::FlowReply, v1::Step>* stream) {
  v1::FlowReply reply;
  reply.set_incarnation(incarnation_);
  stream->Write(reply);  // When the sender is already gone, so is the stream that Read sees.
  std::optional<uint64_t> plan;
  v1::Step step;
  while (stream->Read(&step)) {
    if (!plan.has_value()) {
      plan = step.plan_version();
      if (gate_ != nullptr) {
        const absl::Status allowed = gate_->Check(SenderOf(*context), *plan);
        if (!allowed.ok()) return ToGrpcStatus(allowed);
      }
    } else if (*plan != step.plan_version()) {
      return ToGrpcStatus(absl::AbortedError(
          absl::StrCat("a step of plan ", step.plan_version(), " on a stream of plan ", *plan)));
    }
    const absl::Status received = receiver_(std::move(step));
    if (!received.ok()) return ToGrpcStatus(received);
    step = v1::Step();
  }
  return grpc::Status::OK;
}

}  // namespace caravan
