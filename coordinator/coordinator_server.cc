#include "coordinator/coordinator_server.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "cluster/grpc_channel.h"
#include "cluster/grpc_transport.h"
#include "cluster/incarnation.h"
#include "cluster/pipeline_service.h"
#include "coordinator/cluster_controller.h"
#include "coordinator/cluster_service.h"
#include "coordinator/control_loop.h"
#include "coordinator/job_service.h"
#include "coordinator/model_files_service.h"
#include "coordinator/pipeline_driver.h"
#include "model/checkpoint.h"
#include "model/text_model.h"

namespace caravan {
namespace {

// The KV caches are to hold this many longest sequences, where memory allows.
constexpr int64_t kDefaultContexts = 8;

// Often enough that a lost worker's timeout is kept to a tenth.
constexpr absl::Duration kTickInterval = absl::Milliseconds(100);

// How long a leaving coordinator waits for its calls to end by themselves.
constexpr absl::Duration kFarewell = absl::Seconds(2);

class Server final : public CoordinatorServer {
 public:
  Server(const CoordinatorOptions& options, std::unique_ptr<Checkpoint> checkpoint,
         std::unique_ptr<TextModel> text, ClusterController::Options controller_options)
      : options_(options),
        checkpoint_(std::move(checkpoint)),
        text_(std::move(text)),
        driver_(std::make_unique<PipelineDriver>(DriverOptions(controller_options))),
        controller_(
            controller_options, driver_.get(),
            [this](const std::string& address, uint64_t incarnation, const std::string& name,
                   uint64_t version) { return OpenFirstHop(address, incarnation, name, version); }),
        loop_(kTickInterval, [this] { controller_.Tick(); }),
        cluster_service_(&controller_, &loop_),
        job_service_(text_.get(), driver_.get(), &SteadyClock()),
        model_files_service_(checkpoint_.get()),
        pipeline_service_(controller_options.incarnation,
                          [this](v1::Step step) { return driver_->Receive(std::move(step)); }) {}

  ~Server() override {
    Stop();
    // Its thread, which posts to loop_, ends here.
    driver_.reset();
  }

  absl::Status Listen() {
    CARAVAN_ASSIGN_OR_RETURN(
        GrpcServer started,
        StartGrpcServer(options_.listen, {&cluster_service_, &job_service_, &model_files_service_,
                                          &pipeline_service_}));
    server_ = std::move(started.server);
    const std::string host = options_.listen.substr(0, options_.listen.rfind(':'));
    address_ = absl::StrCat(host, ":", started.port);
    return absl::OkStatus();
  }

  std::string address() const override { return address_; }

  void Stop() override {
    if (std::exchange(stopped_, true)) return;
    loop_.Call<bool>(
        [this] {
          controller_.Dismiss("the coordinator is leaving");
          return true;
        },
        false);
    driver_->Shutdown();
    if (server_ != nullptr) server_->Shutdown(absl::ToChronoTime(absl::Now() + kFarewell));
    loop_.Stop();
  }

 private:
  PipelineDriver::Options DriverOptions(const ClusterController::Options& controller_options) {
    PipelineDriver::Options driver;
    driver.vocab_size = checkpoint_->config().vocab_size;
    driver.context_tokens = controller_options.context_tokens;
    driver.prefill_chunk = options_.prefill_chunk;
    driver.max_queued_jobs = options_.max_queued_jobs;
    driver.pipeline_timeout = options_.worker_timeout;
    driver.on_pipeline_broken = [this](uint64_t version, const absl::Status& why) {
      TellBroken(version, why);
    };
    return driver;
  }

  /// Called by any thread.
  void TellBroken(uint64_t version, const absl::Status& why) {
    (void)loop_.Post([this, version, why] { controller_.PipelineBroken(version, why); });
  }

  absl::StatusOr<std::unique_ptr<ActivationChannel>> OpenFirstHop(const std::string& address,
                                                                  uint64_t incarnation,
                                                                  const std::string& name,
                                                                  uint64_t version) {
    GrpcChannelOptions channel;
    channel.address = address;
    channel.expected_incarnation = incarnation;
    channel.name = name;
    // The control loop waits meanwhile, and must not miss the workers' heartbeats for that long.
    channel.connect_timeout = options_.heartbeat_timeout / 2;
    channel.on_broken = [this, version](const absl::Status& why) { TellBroken(version, why); };
    return OpenGrpcChannel(channel);
  }

  const CoordinatorOptions options_;
  const std::unique_ptr<Checkpoint> checkpoint_;
  const std::unique_ptr<TextModel> text_;
  std::unique_ptr<PipelineDriver> driver_;
  ClusterController controller_;  // lives on loop_
  ControlLoop loop_;
  ClusterService cluster_service_;
  JobService job_service_;
  ModelFilesService model_files_service_;
  PipelineService pipeline_service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  bool stopped_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CoordinatorServer>> CoordinatorServer::Start(
    const CoordinatorOptions& options) {
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint,
                           Checkpoint::Open(options.model_directory));
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<TextModel> text,
                           TextModel::Load(options.model_directory, checkpoint->config()));

  ClusterController::Options controller;
  // Workers may run elsewhere on this machine, so they get the whole path.
  controller.model.set_directory(std::filesystem::absolute(options.model_directory).string());
  controller.model.set_fingerprint(checkpoint->fingerprint());
  controller.model.set_config_json(checkpoint->config_json());
  controller.config = checkpoint->config();
  CARAVAN_ASSIGN_OR_RETURN(controller.cost, ComputeModelCost(checkpoint->config(), *checkpoint));
  controller.min_workers = options.min_workers;
  const int64_t model_context = checkpoint->config().max_position_embeddings;
  if (options.context_tokens < 0 || options.context_tokens > model_context) {
    return absl::InvalidArgumentError(absl::StrCat("a context of ", options.context_tokens,
                                                   " tokens cannot be: the model allows 1 to ",
                                                   model_context));
  }
  controller.context_tokens = options.context_tokens == 0 ? model_context : options.context_tokens;
  controller.kv_tokens = std::max(
      controller.context_tokens,
      options.kv_tokens == 0 ? kDefaultContexts * controller.context_tokens : options.kv_tokens);
  controller.max_step_tokens = options.prefill_chunk;
  controller.heartbeat_timeout = options.heartbeat_timeout;
  controller.heartbeat_interval = std::min(absl::Seconds(1), options.heartbeat_timeout / 4);
  controller.incarnation = NewIncarnation();

  auto server = std::make_unique<Server>(options, std::move(checkpoint), std::move(text),
                                         std::move(controller));
  CARAVAN_RETURN_IF_ERROR(server->Listen());
  LogInfo("coordinator_listening",
          {{"address", server->address()}, {"model", options.model_directory}});
  return server;
}

}  // namespace caravan
