#include "cluster/grpc_channel.h"

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "caravan/v1/pipeline.grpc.pb.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"
#include "cluster/pipeline_service.h"
#include "grpcpp/client_context.h"

namespace caravan {
namespace {

// The far end only says who it is.
constexpr int kMaxFlowReplyBytes = 64 << 10;

std::shared_ptr<grpc::Channel> MakeChannel(const GrpcChannelOptions& options) {
  ChannelOptions channel;
  channel.security = options.security;
  channel.peer = options.expected_identity;
  channel.max_receive_bytes = kMaxFlowReplyBytes;
  return MakeGrpcChannel(options.address, channel);
}

class GrpcChannel : public ActivationChannel {
 public:
  explicit GrpcChannel(const GrpcChannelOptions& options)
      : options_(options),
        label_(absl::StrCat(options.name, " at ", options.address)),
        stub_(v1::Pipeline::NewStub(MakeChannel(options))),
        stream_(OpenStream()),
        reader_("hop-reader", [this] { WatchFarEnd(); }) {}
  ~GrpcChannel() override { Close(); }

  absl::Status WaitUntilOpen() {
    const std::stop_callback give_up(options_.stop, [this] {
      End(absl::CancelledError(absl::StrCat(label_, ": opening it was stopped")));
    });
    MutexLock lock(&mu_);
    const absl::Duration deadline = SteadyClock().Now() + options_.connect_timeout;
    while (!open_ && status_.ok()) {
      const absl::Duration left = deadline - SteadyClock().Now();
      if (left <= absl::ZeroDuration()) {
        status_ = absl::UnavailableError(absl::StrCat(
            label_, ": no answer within ", absl::FormatDuration(options_.connect_timeout)));
        break;
      }
      changed_.WaitWithTimeout(&mu_, left);
    }
    return status_;
  }

  absl::Status Send(v1::Step step) override {
    if (const size_t bytes = step.ByteSizeLong(); bytes > kMaxStepBytes) {
      End(absl::InvalidArgumentError(absl::StrCat(label_, ": step ", step.step_id(), " has ", bytes,
                                                  " bytes, and ", kMaxStepBytes, " is the limit")));
      context_.TryCancel();
    }
    {
      MutexLock lock(&mu_);
      if (!status_.ok()) return status_;
    }
    if (stream_->Write(step, grpc::WriteOptions().set_no_compression())) return absl::OkStatus();
    // A failed write means that the call is over; the reader is about to learn why.
    MutexLock lock(&mu_);
    while (status_.ok()) changed_.Wait(&mu_);
    return status_;
  }

  void Close() override {
    End(absl::CancelledError(absl::StrCat(label_, ": the channel is closed")));
    context_.TryCancel();
    reader_.Join();
  }

 private:
  std::unique_ptr<grpc::ClientReaderWriter<v1::Step, v1::FlowReply>> OpenStream() {
    context_.AddMetadata(kSenderIncarnationKey, absl::StrCat(options_.own_incarnation));
    return stub_->Flow(&context_);
  }

  /// The reader's life: the first reply, then nothing until the stream ends.
  void WatchFarEnd() {
    v1::FlowReply reply;
    if (stream_->Read(&reply)) {
      if (reply.incarnation() == options_.expected_incarnation) {
        MutexLock lock(&mu_);
        open_ = status_.ok();
        changed_.SignalAll();
      } else {
        End(absl::AbortedError(absl::StrCat(label_, ": found incarnation ", reply.incarnation(),
                                            " instead of ", options_.expected_incarnation,
                                            "; it has restarted")));
        context_.TryCancel();
      }
      while (stream_->Read(&reply)) {
      }
    }
    absl::Status ended = FromGrpcStatus(stream_->Finish());
    // Only this end may end a stream without a fault; and Cancelled is this end's own word.
    if (ended.ok() || absl::IsCancelled(ended)) {
      ended = absl::UnavailableError("the far end hung up");
    }
    ended = Annotate(ended, label_);
    if (End(ended) && options_.on_broken != nullptr) options_.on_broken(ended);
  }

  /// The first end counts. Returns whether this was it, and the link was open before.
  bool End(const absl::Status& status) {
    MutexLock lock(&mu_);
    if (!status_.ok()) return false;
    status_ = status;
    changed_.SignalAll();
    return open_;
  }

  const GrpcChannelOptions options_;
  const std::string label_;

  Mutex mu_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);  // not OK once the stream is over

  // gRPC's own synchronisation: one thread writes, the reader reads and finishes.
  grpc::ClientContext context_;
  const std::unique_ptr<v1::Pipeline::Stub> stub_;
  const std::unique_ptr<grpc::ClientReaderWriter<v1::Step, v1::FlowReply>> stream_;
  NamedThread reader_;  // last: it uses all of the above
};

}  // namespace

absl::StatusOr<std::unique_ptr<ActivationChannel>> OpenGrpcChannel(
    const GrpcChannelOptions& options) {
  auto channel = std::make_unique<GrpcChannel>(options);
  CARAVAN_RETURN_IF_ERROR(channel->WaitUntilOpen());
  return channel;
}

}  // namespace caravan
