// The Attend protocol, as a worker meets it: over gRPC, against the real controller.

#include "coordinator/cluster_service.h"
#include "cluster/protocol_version.h"

#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kIncarnation = 99;

/// A coordinator without a pipeline, on a port that the system chose.
class Coordinator {
 public:
  struct Options {
    int min_workers = 2;  // so that one worker is only welcomed
    std::string config_json;
    absl::Duration registration_timeout = absl::Hours(1);
  };
  explicit Coordinator(const Options& options)
      : driver_(DriverOptions()),
        controller_(ControllerOptions(options), &driver_,
                    [](const ClusterController::PipelineEnds&) {
                      return absl::UnavailableError("no hops here");
                    }),
        loop_(absl::Hours(1), [] {}),
        service_(&controller_, &loop_, options.registration_timeout),
        server_(*StartGrpcServer("127.0.0.1:0", {&service_})) {}
  Coordinator() : Coordinator(Options{}) {}
  ~Coordinator() { ShutDownGrpcServer(*server_.server, absl::ZeroDuration()); }

  std::string address() const { return absl::StrCat("127.0.0.1:", server_.port); }
  SimulatedClock& clock() { return clock_; }
  ControlLoop& loop() { return loop_; }
  ClusterController& controller() { return controller_; }  // on loop() alone
  v1::GetStatusResponse Status() {
    return loop_.Call<v1::GetStatusResponse>([this] { return controller_.Status(); }, {});
  }
  void WaitUntilNobodyIsThere() {
    while (Status().workers_size() > 0) std::this_thread::yield();
  }

 private:
  static PipelineDriver::Options DriverOptions() {
    PipelineDriver::Options options;
    options.vocab_size = 16;
    options.context_tokens = 64;
    return options;
  }
  ClusterController::Options ControllerOptions(const Options& from) {
    ClusterController::Options options;
    options.model.set_config_json(from.config_json);
    options.cost.layers.assign(1, LayerCost{});
    options.cost.layers[0].weight_bytes = 1;
    options.min_workers = from.min_workers;
    options.context_tokens = 64;
    options.incarnation = 7;
    options.clock = &clock_;
    return options;
  }

  SimulatedClock clock_;
  PipelineDriver driver_;
  ClusterController controller_;
  ControlLoop loop_;
  ClusterService service_;
  GrpcServer server_;
};

/// A worker's end of an Attend call.
class Attendance {
 public:
  explicit Attendance(const Coordinator& coordinator)
      : stub_(v1::Cluster::NewStub(MakeGrpcChannel(coordinator.address()))),
        stream_(stub_->Attend(&context_)) {}
  ~Attendance() {
    context_.TryCancel();
    if (!finished_) (void)stream_->Finish();
  }

  void Say(v1::WorkerReport report, uint64_t incarnation = kIncarnation) {
    report.set_incarnation(incarnation);
    stream_->Write(report);
  }
  void Register(const std::string& address = "10.0.0.1:7000") {
    v1::WorkerReport report;
    v1::Registration& registration = *report.mutable_registration();
    registration.set_name("box-a");
    registration.set_address(address);
    registration.set_device("cpu");
    registration.set_memory_budget_bytes(1000);
    registration.set_num_threads(1);
    registration.set_protocol_version(kProtocolVersion);
    Say(report);
  }
  v1::WorkerOrder Hear() {
    v1::WorkerOrder order;
    EXPECT_TRUE(stream_->Read(&order));
    return order;
  }
  /// Hears the rest, and how the coordinator ended it.
  absl::Status End() {
    v1::WorkerOrder order;
    while (stream_->Read(&order)) {
    }
    finished_ = true;
    return FromGrpcStatus(stream_->Finish());
  }
  void WritesDone() { stream_->WritesDone(); }
  void HangUp() { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  const std::unique_ptr<v1::Cluster::Stub> stub_;
  const std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerReport, v1::WorkerOrder>> stream_;
  bool finished_ = false;
};

v1::WorkerReport Heartbeat() {
  v1::WorkerReport report;
  report.mutable_heartbeat();
  return report;
}

TEST(ClusterServiceTest, ARegistrationIsWelcomed) {
  Coordinator coordinator;
  Attendance worker(coordinator);
  worker.Register();
  const v1::WorkerOrder order = worker.Hear();
  EXPECT_EQ(order.welcome().worker_id(), 1u);
  EXPECT_EQ(order.welcome().coordinator_incarnation(), 7u);
  worker.Say(Heartbeat());
  EXPECT_EQ(coordinator.Status().workers(0).address(), "10.0.0.1:7000");
}

TEST(ClusterServiceTest, AnAddressWithoutAHostGetsTheCallers) {
  Coordinator coordinator;
  Attendance worker(coordinator);
  worker.Register(":7000");
  worker.Hear();
  EXPECT_EQ(coordinator.Status().workers(0).address(), "127.0.0.1:7000");
}

TEST(ClusterServiceTest, AnythingElseFirstIsRefused) {
  Coordinator coordinator;
  Attendance worker(coordinator);
  worker.Say(Heartbeat());
  EXPECT_EQ(worker.End(), absl::InvalidArgumentError("the first report must be a registration"));
  Attendance silent(coordinator);
  silent.WritesDone();
  EXPECT_EQ(silent.End().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ClusterServiceTest, AMalformedRegistrationIsRefusedByField) {
  Coordinator coordinator;
  Attendance worker(coordinator);
  worker.Register("nowhere");
  const absl::Status status = worker.End();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("address"));
  EXPECT_EQ(coordinator.Status().workers_size(), 0);
}

TEST(ClusterServiceTest, WhoSaysNothingIsCutOff) {
  Coordinator::Options options;
  options.registration_timeout = absl::Milliseconds(10);
  Coordinator coordinator(options);
  Attendance worker(coordinator);
  EXPECT_EQ(worker.End().code(), absl::StatusCode::kCancelled);
}

TEST(ClusterServiceTest, AStaleIncarnationIsAbortedAndLost) {
  Coordinator coordinator;
  Attendance worker(coordinator);
  worker.Register();
  worker.Hear();
  worker.Say(Heartbeat(), kIncarnation + 1);
  EXPECT_EQ(worker.End().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(coordinator.Status().workers_size(), 0);
}

TEST(ClusterServiceTest, ADepartedWorkersCallIsEnded) {
  Coordinator coordinator;
  Attendance worker(coordinator);
  worker.Register();
  worker.Hear();
  v1::WorkerReport farewell;
  farewell.mutable_departure();
  worker.Say(farewell);
  EXPECT_EQ(worker.End().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(coordinator.Status().workers_size(), 0);
}

TEST(ClusterServiceTest, ABrokenStreamIsALoss) {
  Coordinator coordinator;
  Attendance worker(coordinator);
  worker.Register();
  worker.Hear();
  worker.HangUp();
  coordinator.WaitUntilNobodyIsThere();
}

TEST(ClusterServiceTest, AWorkerThatTakesNoOrdersIsLost) {
  Coordinator::Options options;
  options.min_workers = 1;
  options.config_json = std::string(1 << 20, 'x');  // fills the connection soon
  Coordinator coordinator(options);
  Attendance worker(coordinator);
  worker.Register();
  worker.Hear();  // Welcome, and nothing more
  // Plan after plan fails, and each sends two orders.
  for (int i = 0; i < 100; ++i) {
    coordinator.loop().Call<bool>(
        [&] {
          v1::WorkerReport report;
          report.set_incarnation(kIncarnation);
          const uint64_t version = coordinator.controller().Status().plan_version();
          report.mutable_failure()->set_plan_version(version);
          report.mutable_failure()->set_code(static_cast<int>(absl::StatusCode::kUnavailable));
          EXPECT_TRUE(coordinator.controller().Report(WorkerId(1), report).ok());
          coordinator.clock().Advance(absl::Seconds(5));
          coordinator.controller().Tick();
          return true;
        },
        false);
  }
  worker.Say(Heartbeat());
  coordinator.WaitUntilNobodyIsThere();
}

TEST(ClusterServiceTest, ACoordinatorThatLeavesIsUnavailable) {
  Coordinator coordinator;
  coordinator.loop().Stop();
  Attendance worker(coordinator);
  worker.Register();
  EXPECT_EQ(worker.End().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace caravan
