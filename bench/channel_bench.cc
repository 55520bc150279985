// A hop over gRPC on the loopback interface: the time that a step spends on links, and how many
// bytes a link carries. Both ends run in this process.
//
//   channel_bench

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/bounded_queue.h"
#include "base/check.h"
#include "benchmark/benchmark.h"
#include "cluster/grpc_channel.h"
#include "cluster/grpc_transport.h"
#include "cluster/pipeline_service.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"

namespace caravan {
namespace {

constexpr uint64_t kIncarnation = 1;

/// A process's receiving end, and a channel that leads to it.
class Hop {
 public:
  explicit Hop(StepReceiver receiver) : service_(kIncarnation, std::move(receiver)) {
    grpc::ServerBuilder builder;
    ConfigureGrpcServer(builder);
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    CARAVAN_CHECK(server_ != nullptr);
    GrpcChannelOptions options;
    options.address = absl::StrCat("127.0.0.1:", port);
    options.expected_incarnation = kIncarnation;
    auto channel = OpenGrpcChannel(options);
    CARAVAN_CHECK(channel.ok());
    channel_ = *std::move(channel);
  }
  ~Hop() {
    channel_->Close();
    server_->Shutdown(std::chrono::system_clock::now());
  }

  ActivationChannel& channel() { return *channel_; }

 private:
  PipelineService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<ActivationChannel> channel_;
};

v1::Step MakeStep(int64_t floats) {
  v1::Step step;
  step.set_activations(std::string(static_cast<size_t>(floats) * sizeof(float), 'a'));
  return step;
}

/// There over one hop and back over another, one step at a time. Argument: floats in the step.
void BM_RoundTrip(benchmark::State& state) {
  BoundedQueue<v1::Step> returned(1);
  Hop back([&](v1::Step step) {
    return returned.Push(std::move(step)) ? absl::OkStatus() : absl::UnavailableError("leaving");
  });
  Hop there([&](v1::Step step) { return back.channel().Send(std::move(step)); });
  v1::Step step = MakeStep(state.range(0));
  for (auto _ : state) {
    CARAVAN_CHECK(there.channel().Send(std::move(step)).ok());
    step = *returned.Pop();
  }
}
// One token of DeepSeek-R1's, and a step without activations: the link's own latency.
BENCHMARK(BM_RoundTrip)->Arg(7168)->Arg(0)->Unit(benchmark::kMicrosecond)->UseRealTime();

/// One way, with four steps on the link at any time. Argument: floats in a step.
void BM_OneWay(benchmark::State& state) {
  constexpr int kInFlight = 4;
  BoundedQueue<v1::Step> arrived(kInFlight);
  Hop hop([&](v1::Step step) {
    return arrived.Push(std::move(step)) ? absl::OkStatus() : absl::UnavailableError("leaving");
  });
  for (int i = 0; i < kInFlight; ++i) {
    CARAVAN_CHECK(hop.channel().Send(MakeStep(state.range(0))).ok());
  }
  // What arrived is sent again, so that making steps is not measured.
  for (auto _ : state) CARAVAN_CHECK(hop.channel().Send(*arrived.Pop()).ok());
  state.counters["GB/s"] = benchmark::Counter(
      static_cast<double>(state.iterations() * state.range(0)) * sizeof(float) / 1e9,
      benchmark::Counter::kIsRate);
}
// A chunk of 512 rows of hidden_size 7168.
BENCHMARK(BM_OneWay)->Arg(512 * 7168)->Unit(benchmark::kMicrosecond)->UseRealTime();

}  // namespace
}  // namespace caravan

BENCHMARK_MAIN();
