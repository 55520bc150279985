#include "cluster/grpc_channel.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bounded_queue.h"
#include "base/check.h"
#include "base/clock.h"
#include "cluster/grpc_transport.h"
#include "cluster/pipeline_service.h"
#include "gmock/gmock.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kIncarnation = 0xfeedface12345678;
// For what must happen at once; long, as the machine may be busy.
constexpr absl::Duration kSoon = absl::Seconds(20);

/// A PipelineService on a port that the system chose.
class Receiver {
 public:
  explicit Receiver(StepReceiver receiver) : service_(kIncarnation, std::move(receiver)) {
    grpc::ServerBuilder builder;
    ConfigureGrpcServer(builder);
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
  }
  ~Receiver() { Kill(); }

  void Kill() { ShutDownGrpcServer(*server_, absl::ZeroDuration()); }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  GrpcChannelOptions Options() const {
    GrpcChannelOptions options;
    options.address = address();
    options.expected_incarnation = kIncarnation;
    options.connect_timeout = kSoon;
    return options;
  }

 private:
  PipelineService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

v1::Step MakeStep(uint64_t id, size_t activation_bytes = 0) {
  v1::Step step;
  step.set_step_id(id);
  step.set_activations(std::string(activation_bytes, 'a'));
  return step;
}

/// Sends until an error comes, which the far end has already caused.
absl::Status SendUntilItFails(ActivationChannel& channel) {
  const absl::Duration deadline = SteadyClock().Now() + kSoon;
  while (SteadyClock().Now() < deadline) {
    if (const absl::Status sent = channel.Send(MakeStep(1000)); !sent.ok()) return sent;
  }
  return absl::OkStatus();
}

TEST(GrpcChannelTest, KeepsTheOrderOfSteps) {
  BoundedQueue<uint64_t> received(1000);
  Receiver receiver([&](v1::Step step) {
    received.Push(step.step_id());
    return absl::OkStatus();
  });
  auto channel = OpenGrpcChannel(receiver.Options());
  ASSERT_TRUE(channel.ok()) << channel.status();
  for (uint64_t id = 1; id <= 1000; ++id) ASSERT_TRUE((*channel)->Send(MakeStep(id)).ok());
  for (uint64_t id = 1; id <= 1000; ++id) ASSERT_EQ(received.Pop(), id);
}

TEST(GrpcChannelTest, CarriesThirtyTwoMegabytesAndEveryBitOfAFloat) {
  // Not-a-number with a payload, negative zero, a subnormal and infinities among them.
  const std::vector<uint32_t> bits = {0x7fc12345u, 0x80000000u, 0x00000001u, 0xff800000u,
                                      0x7f800000u, 0x3f800001u, 0x0d0a0a0du};
  std::string activations(size_t{32} << 20, '\0');
  for (size_t i = 0; i < activations.size() / 4; ++i) {
    const uint32_t word = bits[i % bits.size()];
    std::memcpy(activations.data() + 4 * i, &word, 4);
  }
  BoundedQueue<v1::Step> received(1);
  Receiver receiver([&](v1::Step step) {
    received.Push(std::move(step));
    return absl::OkStatus();
  });
  auto channel = OpenGrpcChannel(receiver.Options());
  ASSERT_TRUE(channel.ok()) << channel.status();
  v1::Step step;
  step.set_activations(activations);
  ASSERT_TRUE((*channel)->Send(std::move(step)).ok());
  EXPECT_TRUE(received.Pop()->activations() == activations);
}

TEST(GrpcChannelTest, ServesSeveralStreamsAtOnce) {
  BoundedQueue<uint64_t> received(2);
  Receiver receiver([&](v1::Step step) {
    received.Push(step.step_id());
    return absl::OkStatus();
  });
  auto first = OpenGrpcChannel(receiver.Options());
  auto second = OpenGrpcChannel(receiver.Options());
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_TRUE((*second)->Send(MakeStep(2)).ok());
  EXPECT_EQ(received.Pop(), 2u);
  ASSERT_TRUE((*first)->Send(MakeStep(1)).ok());
  EXPECT_EQ(received.Pop(), 1u);
}

TEST(GrpcChannelTest, RefusesAnotherIncarnation) {
  Receiver receiver([](v1::Step) { return absl::OkStatus(); });
  GrpcChannelOptions options = receiver.Options();
  options.expected_incarnation = 7;
  options.name = "worker b";
  const absl::Status status = OpenGrpcChannel(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("worker b at ", receiver.address())));
}

TEST(GrpcChannelTest, SaysThatNobodyIsThere) {
  std::optional<Receiver> receiver(std::in_place, [](v1::Step) { return absl::OkStatus(); });
  const GrpcChannelOptions options = receiver->Options();
  receiver.reset();  // Its port is now nobody's.
  const absl::Duration start = SteadyClock().Now();
  const absl::Status status = OpenGrpcChannel(options).status();
  EXPECT_LT(SteadyClock().Now() - start, options.connect_timeout);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(options.address));
}

TEST(GrpcChannelTest, GivesUpOnAnAddressThatAcceptsButNeverAnswers) {
  // A service whose Flow says nothing.
  class Mute : public v1::Pipeline::Service {
    grpc::Status Flow(grpc::ServerContext*,
                      grpc::ServerReaderWriter<v1::FlowReply, v1::Step>* stream) override {
      v1::Step step;
      while (stream->Read(&step)) {
      }
      return grpc::Status::OK;
    }
  } mute;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&mute);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  GrpcChannelOptions options;
  options.address = absl::StrCat("127.0.0.1:", port);
  options.connect_timeout = absl::Milliseconds(50);
  const absl::Status status = OpenGrpcChannel(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("50ms"));
  ShutDownGrpcServer(*server, absl::ZeroDuration());
}

TEST(GrpcChannelTest, AStopEndsTheOpening) {
  // A service whose Flow says nothing.
  class Mute : public v1::Pipeline::Service {
   public:
    BoundedQueue<int> entered{1};

   private:
    grpc::Status Flow(grpc::ServerContext*,
                      grpc::ServerReaderWriter<v1::FlowReply, v1::Step>* stream) override {
      entered.Push(0);
      v1::Step step;
      while (stream->Read(&step)) {
      }
      return grpc::Status::OK;
    }
  } mute;
  const GrpcServer started = *StartGrpcServer("127.0.0.1:0", {&mute});
  GrpcChannelOptions options;
  options.address = absl::StrCat("127.0.0.1:", started.port);
  options.connect_timeout = absl::Hours(1);
  std::stop_source stop;
  options.stop = stop.get_token();
  absl::Status status;
  std::thread opener([&] { status = OpenGrpcChannel(options).status(); });
  mute.entered.Pop();
  stop.request_stop();
  opener.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(OpenGrpcChannel(options).status().code(), absl::StatusCode::kCancelled);
  ShutDownGrpcServer(*started.server, absl::ZeroDuration());
}

TEST(GrpcChannelTest, BringsTheReceiversErrorToTheSender) {
  for (const absl::Status& error :
       {absl::AbortedError("plan 1 is over"), absl::FailedPreconditionError("step 4 after step 5"),
        absl::UnavailableError("leaving")}) {
    Receiver receiver([&](v1::Step) { return error; });
    auto channel = OpenGrpcChannel(receiver.Options());
    ASSERT_TRUE(channel.ok()) << channel.status();
    const absl::Status sent = SendUntilItFails(**channel);
    EXPECT_EQ(sent.code(), error.code());
    EXPECT_THAT(std::string(sent.message()), HasSubstr(std::string(error.message())));
    EXPECT_EQ((*channel)->Send(MakeStep(1)), sent);
  }
}

TEST(GrpcChannelTest, ReportsADeadFarEndWhileIdleAndToTheNextSend) {
  Receiver receiver([](v1::Step) { return absl::OkStatus(); });
  BoundedQueue<absl::Status> broken(2);
  GrpcChannelOptions options = receiver.Options();
  options.on_broken = [&](absl::Status status) { broken.Push(std::move(status)); };
  auto channel = OpenGrpcChannel(options);
  ASSERT_TRUE(channel.ok()) << channel.status();
  receiver.Kill();
  const std::optional<absl::Status> reported = broken.PopWithTimeout(kSoon);
  ASSERT_TRUE(reported.has_value());
  EXPECT_EQ(reported->code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ((*channel)->Send(MakeStep(1)), *reported);
  (*channel)->Close();
  EXPECT_FALSE(broken.PopWithTimeout(absl::ZeroDuration()).has_value());
}

TEST(GrpcChannelTest, DoesNotReportItsOwnClose) {
  Receiver receiver([](v1::Step) { return absl::OkStatus(); });
  BoundedQueue<absl::Status> broken(1);
  GrpcChannelOptions options = receiver.Options();
  options.on_broken = [&](absl::Status status) { broken.Push(std::move(status)); };
  auto channel = OpenGrpcChannel(options);
  ASSERT_TRUE(channel.ok()) << channel.status();
  (*channel)->Close();
  (*channel)->Close();
  EXPECT_EQ((*channel)->Send(MakeStep(1)).code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(broken.PopWithTimeout(absl::ZeroDuration()).has_value());
}

/// A receiver that takes one step and sits on it until `release` is closed. Steps that were on
/// their way then may still come.
struct Stuck {
  BoundedQueue<int> entered{1};
  BoundedQueue<int> release{1};
  absl::Status result;
  Receiver receiver{[this](v1::Step) {
    entered.TryPush(0);
    release.Pop();
    return result;
  }};
};

/// Sends megabytes until flow control holds it back and something ends it; returns how it ended.
absl::Status FloodUntilItFails(ActivationChannel& channel) {
  absl::Status sent;
  while (sent.ok()) sent = channel.Send(MakeStep(1, 1 << 20));
  return sent;
}

TEST(GrpcChannelTest, CloseReleasesASendThatFlowControlHoldsBack) {
  Stuck stuck;
  auto channel = OpenGrpcChannel(stuck.receiver.Options());
  ASSERT_TRUE(channel.ok()) << channel.status();
  absl::Status sent;
  std::thread sender([&] { sent = FloodUntilItFails(**channel); });
  stuck.entered.Pop();
  (*channel)->Close();
  sender.join();
  EXPECT_EQ(sent.code(), absl::StatusCode::kCancelled);
  stuck.release.Close();
}

/// Stands between a sender and a receiver, and from Slow on lets a few kilobytes a second through:
/// less than a write that the kernel has begun to take.
class SlowLink {
 public:
  explicit SlowLink(const std::string& to) : to_(to), listener_(Socket()) {
    // Little fits into the kernel's buffers.
    const int bytes = 4096;
    const int segment = 536;
    CARAVAN_CHECK(::setsockopt(listener_, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes)) == 0);
    CARAVAN_CHECK(::setsockopt(listener_, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof(segment)) == 0);
    sockaddr_in any = Loopback(0);
    CARAVAN_CHECK(::bind(listener_, reinterpret_cast<sockaddr*>(&any), sizeof(any)) == 0);
    CARAVAN_CHECK(::listen(listener_, 1) == 0);
    thread_ = std::thread([this] { Carry(); });
  }
  ~SlowLink() {
    ended_ = true;
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
  }

  std::string address() const {
    sockaddr_in bound = {};
    socklen_t size = sizeof(bound);
    CARAVAN_CHECK(::getsockname(listener_, reinterpret_cast<sockaddr*>(&bound), &size) == 0);
    return absl::StrCat("127.0.0.1:", ntohs(bound.sin_port));
  }
  void Slow() { slow_ = true; }

 private:
  static int Socket() { return ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); }
  static sockaddr_in Loopback(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  void Carry() {
    const int sender = ::accept(listener_, nullptr, nullptr);
    if (sender < 0) return;
    const int receiver = Socket();
    sockaddr_in to = Loopback(std::atoi(to_.c_str() + to_.rfind(':') + 1));
    CARAVAN_CHECK(::connect(receiver, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0);
    char buffer[4096];
    pollfd ends[] = {{sender, POLLIN, 0}, {receiver, POLLIN, 0}};
    while (!ended_) {
      // A slow one carries a buffer a turn, and turns often enough for TCP not to give up.
      ::poll(slow_ ? nullptr : ends, slow_ ? 0 : 2, 100);
      for (const auto& [from, into] : {std::pair{sender, receiver}, std::pair{receiver, sender}}) {
        const ssize_t got = ::recv(from, buffer, sizeof(buffer), MSG_DONTWAIT);
        if (got > 0) ::send(into, buffer, static_cast<size_t>(got), MSG_NOSIGNAL);
      }
    }
    ::close(sender);
    ::close(receiver);
  }

  const std::string to_;
  const int listener_;
  std::atomic<bool> slow_{false};
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

TEST(GrpcChannelTest, CloseDoesNotWaitForALinkThatTakesLittle) {
  BoundedQueue<v1::Step> received(1000);
  Receiver receiver([&](v1::Step step) {
    received.Push(std::move(step));
    return absl::OkStatus();
  });
  SlowLink link(receiver.address());
  GrpcChannelOptions options = receiver.Options();
  options.address = link.address();
  auto channel = OpenGrpcChannel(options);
  ASSERT_TRUE(channel.ok()) << channel.status();
  ASSERT_TRUE((*channel)->Send(MakeStep(1)).ok());
  ASSERT_TRUE(received.Pop().has_value());
  link.Slow();
  absl::Status sent;
  BoundedQueue<int> returned(1);
  std::thread sender([&] {
    sent = FloodUntilItFails(**channel);
    returned.Push(0);
  });
  // Nothing tells when the kernel's buffers are full; in a second they are.
  EXPECT_FALSE(returned.PopWithTimeout(absl::Seconds(1)).has_value());
  const absl::Duration start = SteadyClock().Now();
  (*channel)->Close();
  sender.join();
  EXPECT_LT(SteadyClock().Now() - start, absl::Seconds(5));
  EXPECT_EQ(sent.code(), absl::StatusCode::kCancelled);
}

TEST(GrpcChannelTest, TheReceiversErrorReleasesASendThatFlowControlHoldsBack) {
  Stuck stuck;
  stuck.result = absl::AbortedError("plan 1 is over");
  auto channel = OpenGrpcChannel(stuck.receiver.Options());
  ASSERT_TRUE(channel.ok()) << channel.status();
  absl::Status sent;
  std::thread sender([&] { sent = FloodUntilItFails(**channel); });
  stuck.entered.Pop();
  stuck.release.Close();
  sender.join();
  EXPECT_EQ(sent.code(), absl::StatusCode::kAborted);
}

TEST(GrpcChannelTest, RefusesAStepThatIsTooLarge) {
  Receiver receiver([](v1::Step) { return absl::OkStatus(); });
  auto channel = OpenGrpcChannel(receiver.Options());
  ASSERT_TRUE(channel.ok()) << channel.status();
  const absl::Status sent = (*channel)->Send(MakeStep(5, kMaxStepBytes));
  EXPECT_EQ(sent.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(sent.message()), HasSubstr("step 5"));
  EXPECT_EQ((*channel)->Send(MakeStep(6)), sent);
}

TEST(PipelineServiceTest, EndsIdleStreamsOnShutdown) {
  Receiver receiver([](v1::Step) { return absl::OkStatus(); });
  auto channel = OpenGrpcChannel(receiver.Options());
  ASSERT_TRUE(channel.ok()) << channel.status();
  const absl::Duration start = SteadyClock().Now();
  receiver.Kill();  // Returns when Flow has.
  EXPECT_LT(SteadyClock().Now() - start, kSoon);
}

}  // namespace
}  // namespace caravan
