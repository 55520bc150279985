#include "cluster/grpc_channel.h"

#include <pthread.h>

#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "caravan/v1/pipeline.grpc.pb.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"
#include "cluster/pipeline_service.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"

namespace caravan {
namespace {

// How long the end of a call may lag behind the end of its stream. It does where a write is under
// way that the network does not take: for as long as that takes, which may be minutes.
constexpr absl::Duration kFarewell = absl::Milliseconds(200);

#if defined(__SANITIZE_THREAD__)
// The library hands a call from the thread that makes it to its own, unseen by the sanitizer.
void HandOver() {
  static Mutex* const mu = new Mutex;
  MutexLock lock(mu);
}
#else
void HandOver() {}
#endif

// The far end only says who it is.
constexpr int kMaxFlowReplyBytes = 64 << 10;

std::shared_ptr<grpc::Channel> MakeChannel(const GrpcChannelOptions& options) {
  ChannelOptions channel;
  channel.security = options.security;
  channel.peer = options.expected_identity;
  channel.max_receive_bytes = kMaxFlowReplyBytes;
  return MakeGrpcChannel(options.address, channel);
}

/// The call, which gRPC may not let go of for long after its end. Nobody else waits for that: a
/// stage can be dropped whatever its next hop does.
class FlowCall final : public grpc::ClientBidiReactor<v1::Step, v1::FlowReply> {
 public:
  explicit FlowCall(const GrpcChannelOptions& options)
      : options_(options),
        label_(absl::StrCat(options.name, " at ", options.address)),
        stub_(v1::Pipeline::NewStub(MakeChannel(options))) {
    context_.AddMetadata(kSenderIncarnationKey, absl::StrCat(options_.own_incarnation));
    stub_->async()->Flow(&context_, this);
    HandOver();
    AddHold();  // writes begin outside of gRPC's callbacks
    StartRead(&reply_);
    StartCall();
  }

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

  absl::Status Send(v1::Step step) {
    if (const size_t bytes = step.ByteSizeLong(); bytes > kMaxStepBytes) {
      End(absl::InvalidArgumentError(absl::StrCat(label_, ": step ", step.step_id(), " has ", bytes,
                                                  " bytes, and ", kMaxStepBytes, " is the limit")));
      context_.TryCancel();
    }
    {
      MutexLock lock(&mu_);
      if (!status_.ok()) return status_;
      if (ended_) return WaitForStatusLocked();
      step_ = std::move(step);
      writing_ = true;
      starting_ = true;
    }
    StartWrite(&step_, grpc::WriteOptions().set_no_compression());
    {
      MutexLock lock(&mu_);
      starting_ = false;
    }
    LetGo();
    MutexLock lock(&mu_);
    while (writing_ && status_.ok() && !ended_) changed_.Wait(&mu_);
    return writing_ ? WaitForStatusLocked() : status_;
  }

  /// on_broken is not called any more once this returns.
  void Close() {
    End(absl::CancelledError(absl::StrCat(label_, ": the channel is closed")));
    context_.TryCancel();
    MutexLock lock(&mu_);
    while (telling_) changed_.Wait(&mu_);
  }

  /// Whether it may be destroyed, after `timeout` at the latest. Not by a thread of gRPC's: the
  /// last channel's end joins these. REQUIRES: Close has returned.
  bool WaitUntilDone(absl::Duration timeout) {
    const absl::Duration deadline = SteadyClock().Now() + timeout;
    MutexLock lock(&mu_);
    while (!done_ && SteadyClock().Now() < deadline) {
      changed_.WaitWithTimeout(&mu_, deadline - SteadyClock().Now());
    }
    return done_;
  }

 private:
  /// The first reply, then nothing until the stream ends.
  void OnReadDone(bool ok) override {
    HandOver();
    if (!ok) {
      {
        MutexLock lock(&mu_);
        ended_ = true;
        changed_.SignalAll();
      }
      LetGo();
      return;
    }
    if (reply_.incarnation() == options_.expected_incarnation) {
      MutexLock lock(&mu_);
      open_ = status_.ok();
      changed_.SignalAll();
    } else {
      End(absl::AbortedError(absl::StrCat(label_, ": found incarnation ", reply_.incarnation(),
                                          " instead of ", options_.expected_incarnation,
                                          "; it has restarted")));
      context_.TryCancel();
    }
    StartRead(&reply_);
  }

  void OnWriteDone(bool ok) override {
    HandOver();
    if (!ok) return;  // the stream is over, which the reading end shows
    MutexLock lock(&mu_);
    writing_ = false;
    changed_.SignalAll();
  }

  void OnDone(const grpc::Status& grpc_status) override {
    HandOver();
    absl::Status ended = FromGrpcStatus(grpc_status);
    // Only this end may end a stream without a fault; and Cancelled is this end's own word.
    if (ended.ok() || absl::IsCancelled(ended)) {
      ended = absl::UnavailableError("the far end hung up");
    }
    ended = Annotate(ended, label_);
    {
      MutexLock lock(&mu_);
      telling_ = true;
    }
    if (End(ended) && options_.on_broken != nullptr) options_.on_broken(ended);
    MutexLock lock(&mu_);
    telling_ = false;
    done_ = true;
    changed_.SignalAll();
  }

  /// Once the stream is over and no write begins any more, gRPC may end the call.
  void LetGo() {
    {
      MutexLock lock(&mu_);
      if (!held_ || !ended_ || starting_) return;
      held_ = false;
    }
    RemoveHold();
  }

  /// What the stream, which is over, ended of.
  absl::Status WaitForStatusLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const absl::Duration deadline = SteadyClock().Now() + kFarewell;
    while (status_.ok()) {
      const absl::Duration left = deadline - SteadyClock().Now();
      if (left <= absl::ZeroDuration()) {
        status_ = absl::UnavailableError(
            absl::StrCat(label_, ": the link is lost, and what was sent last hangs in it"));
        break;
      }
      changed_.WaitWithTimeout(&mu_, left);
    }
    return status_;
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
  bool ended_ ABSL_GUARDED_BY(mu_) = false;     // the stream; why is told by OnDone
  bool writing_ ABSL_GUARDED_BY(mu_) = false;   // step_ is gRPC's
  bool starting_ ABSL_GUARDED_BY(mu_) = false;  // inside StartWrite
  bool held_ ABSL_GUARDED_BY(mu_) = true;       // gRPC does not end the call yet
  bool telling_ ABSL_GUARDED_BY(mu_) = false;   // on_broken is being called, or is about to be
  bool done_ ABSL_GUARDED_BY(mu_) = false;      // gRPC has no use for this any more
  absl::Status status_ ABSL_GUARDED_BY(mu_);    // not OK once the stream is over

  // gRPC's own synchronisation.
  grpc::ClientContext context_;
  const std::unique_ptr<v1::Pipeline::Stub> stub_;
  v1::Step step_;  // sent last
  v1::FlowReply reply_;
};

/// Whether this process is ending by exit(), which destroys what gRPC needs while threads that
/// nobody joins still run. Thread-safe; never destroyed.
class ProcessExit {
 public:
  static ProcessExit* Get() {
    static ProcessExit* const instance = [] {
      // What is registered later is called earlier: before what gRPC has at this point.
      std::atexit([] { Get()->Begin(); });
      return new ProcessExit;
    }();
    return instance;
  }

  /// Calls `body` unless the end has begun, which then waits for it.
  void UnlessBegun(absl::FunctionRef<void()> body) {
    MutexLock lock(&mu_);
    if (!begun_) body();
  }

 private:
  void Begin() {
    MutexLock lock(&mu_);
    begun_ = true;
  }

  Mutex mu_;  // held while a call goes, of which nothing else takes it
  bool begun_ ABSL_GUARDED_BY(mu_) = false;
};

class GrpcChannel : public ActivationChannel {
 public:
  explicit GrpcChannel(const GrpcChannelOptions& options)
      : call_(std::make_unique<FlowCall>(options)) {}
  ~GrpcChannel() override {
    Close();
    if (call_->WaitUntilDone(kFarewell)) return;
    // The one thread that nobody joins: it ends when the network lets go, or the process ends.
    std::thread([call = std::move(call_), end = ProcessExit::Get()]() mutable {
      pthread_setname_np(pthread_self(), "hop-remains");
      call->WaitUntilDone(absl::InfiniteDuration());
      end->UnlessBegun([&call] { call.reset(); });
      (void)call.release();  // nothing, or what the end of the process takes with it
    }).detach();
  }

  absl::Status WaitUntilOpen() { return call_->WaitUntilOpen(); }
  absl::Status Send(v1::Step step) override { return call_->Send(std::move(step)); }
  void Close() override { call_->Close(); }

 private:
  std::unique_ptr<FlowCall> call_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ActivationChannel>> OpenGrpcChannel(
    const GrpcChannelOptions& options) {
  auto channel = std::make_unique<GrpcChannel>(options);
  CARAVAN_RETURN_IF_ERROR(channel->WaitUntilOpen());
  return channel;
}

}  // namespace caravan
