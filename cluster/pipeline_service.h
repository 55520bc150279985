#ifndef CARAVAN_CLUSTER_PIPELINE_SERVICE_H_
#define CARAVAN_CLUSTER_PIPELINE_SERVICE_H_

// The receiving end of the hops that lead here: says who it is, and hands on what arrives of whom
// it should.

#include <cstdint>
#include <utility>

#include "caravan/v1/pipeline.grpc.pb.h"
#include "cluster/activation_channel.h"
#include "cluster/sender_gate.h"

namespace caravan {

/// Metadata of Pipeline.Flow: the caller's incarnation, in decimal digits.
inline constexpr char kSenderIncarnationKey[] = "caravan-incarnation";

/// Thread-safe. Several streams may be open at once (the old plan's and the new one's): each calls
/// the receiver from a thread of its own, which judges the steps' plans.
///
/// To stop: let the receiver return Unavailable, then call grpc::Server::Shutdown with a deadline,
/// which ends the streams that wait for a step. Without a deadline it waits until the senders
/// leave.
class PipelineService final : public v1::Pipeline::Service {
 public:
  /// `gate`, which is borrowed, is asked about the first step of each stream, which carries steps
  /// of that plan only; null: whoever sends may.
  PipelineService(uint64_t incarnation, StepReceiver receiver, const SenderGate* gate = nullptr)
      : incarnation_(incarnation), receiver_(std::move(receiver)), gate_(gate) {}

  /// Errors: the gate's, the receiver's; Aborted - a step of another plan than the stream's first.
  grpc::Status Flow(grpc::ServerContext* context,
                    grpc::ServerReaderWriter<v1::FlowReply, v1::Step>* stream) override;

 private:
  const uint64_t incarnation_;
  const StepReceiver receiver_;
  const SenderGate* const gate_;
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_PIPELINE_SERVICE_H_
