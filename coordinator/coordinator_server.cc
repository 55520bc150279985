#include "coordinator/coordinator_server.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "cluster/certificate_watch.h"
#include "cluster/grpc_channel.h"
#include "cluster/grpc_transport.h"
#include "cluster/incarnation.h"
#include "cluster/pack_files_service.h"
#include "cluster/pipeline_service.h"
#include "cluster/probe_service.h"
#include "cluster/sender_gate.h"
#include "cluster/serving_share.h"
#include "coordinator/batch/batch_book.h"
#include "coordinator/batch/batch_runner.h"
#include "coordinator/batch_grpc_service.h"
#include "coordinator/cluster_controller.h"
#include "coordinator/cluster_service.h"
#include "coordinator/control_loop.h"
#include "coordinator/enrolment_service.h"
#include "coordinator/http_front.h"
#include "coordinator/job_service.h"
#include "coordinator/model_files_service.h"
#include "coordinator/pipeline_driver.h"
#include "coordinator/store/job_ids.h"
#include "coordinator/store/job_store.h"
#include "model/model_identity.h"
#include "model/pack/packed_model.h"
#include "model/stored_model.h"
#include "model/stored_model_cost.h"
#include "model/text_model.h"

namespace caravan {
namespace {

// The KV caches are to hold this many longest sequences, where memory allows.
constexpr int64_t kDefaultContexts = 8;

// Often enough that a lost worker's timeout is kept to a tenth.
constexpr absl::Duration kTickInterval = absl::Milliseconds(100);

// How long a leaving coordinator waits for its calls to end by themselves.
constexpr absl::Duration kFarewell = absl::Seconds(2);

// Jobs of batches that the driver has at a time: more than a pipeline runs at once, ...
constexpr int64_t kMaxBatchJobs = 256;
// ... and no more than this share of its queue, of which the rest is for others.
constexpr int64_t kBatchShareOfQueue = 4;

/// What a coordinator keeps on disk.
struct State {
  std::unique_ptr<JobStore> store;
  JobIds job_ids;
};

absl::StatusOr<State> OpenState(const std::string& path, uint64_t model_fingerprint) {
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<JobStore> store, JobStore::Open(path));
  CARAVAN_RETURN_IF_ERROR(store->UseModel(model_fingerprint));
  CARAVAN_ASSIGN_OR_RETURN(const JobIds job_ids, JobIds::Reserve(store.get()));
  return State{std::move(store), job_ids};
}

class Server final : public CoordinatorServer {
 public:
  Server(const CoordinatorOptions& options, std::unique_ptr<StoredModel> model_files,
         std::unique_ptr<TextModel> text, State state,
         ClusterController::Options controller_options)
      : options_(options),
        incarnation_(controller_options.incarnation),
        model_files_(std::move(model_files)),
        text_(std::move(text)),
        state_(std::move(state)),
        batches_(state_.store.get()),
        served_model_(MakeServedModel(controller_options.context_tokens)),
        http_(MakeHttpFront()),
        driver_(std::make_unique<PipelineDriver>(DriverOptions(controller_options))),
        controller_(
            controller_options, driver_.get(),
            [this](const ClusterController::PipelineEnds& ends) { return OpenFirstHop(ends); }),
        loop_(kTickInterval, [this] { Tick(); }),
        cluster_service_(&controller_, &loop_),
        job_service_(text_.get(), driver_.get(), &SteadyClock()),
        batch_service_(&batches_),
        share_(ShareOptions()),
        model_files_service_(model_files_.get(), &share_),
        pack_files_service_(
            incarnation_, [this](uint64_t fingerprint) { return ListFiles(fingerprint); }, &share_),
        pipeline_service_(
            controller_options.incarnation,
            [this](v1::Step step) { return driver_->Receive(std::move(step)); }, &last_stage_) {}

  ~Server() override {
    Stop();
    // Its thread, which posts to loop_, ends here.
    driver_.reset();
  }

  absl::Status Listen() {
    if (const auto* const pack = dynamic_cast<const PackedModel*>(model_files_.get())) {
      CARAVAN_ASSIGN_OR_RETURN(pack_files_, FilesOfPack(*pack));
    }
    std::vector<grpc::Service*> services = {
        &cluster_service_,    &job_service_,      &batch_service_, &model_files_service_,
        &pack_files_service_, &pipeline_service_, &probe_service_};
    if (options_.security.tls != nullptr) {
      certificates_.emplace(options_.security.tls->directory());
      CARAVAN_ASSIGN_OR_RETURN(enrolment_service_,
                               EnrolmentService::Open(options_.security.tls->directory()));
      services.push_back(enrolment_service_.get());
    }
    TransportSecurity security = options_.security;
    security.knows_token = [this](const std::string& id) {
      return enrolment_service_->KnowsToken(id);
    };
    CARAVAN_ASSIGN_OR_RETURN(GrpcServer started,
                             StartGrpcServer(options_.listen, services, security));
    server_ = std::move(started.server);
    const std::string host = options_.listen.substr(0, options_.listen.rfind(':'));
    address_ = absl::StrCat(host, ":", started.port);
    if (http_ != nullptr) {
      CARAVAN_RETURN_IF_ERROR(Annotate(http_->Start(driver_.get()), "HTTP"));
      // From here on ticks keep it up to date.
      (void)loop_.Post([this] {
        http_serves_ = true;
        Tick();
      });
    }
    runner_ = std::make_unique<BatchRunner>(RunnerOptions());
    return absl::OkStatus();
  }

  std::string address() const override { return address_; }
  std::string http_address() const override { return http_ == nullptr ? "" : http_->address(); }

  void Stop() override {
    if (std::exchange(stopped_, true)) return;
    // First, so that its jobs are not lost but left.
    if (runner_ != nullptr) runner_->Stop();
    loop_.Call<bool>(
        [this] {
          controller_.Dismiss("the coordinator is leaving");
          return true;
        },
        false);
    driver_->Shutdown();
    batch_service_.Stop();
    if (http_ != nullptr) http_->Stop(kFarewell);
    if (server_ != nullptr) ShutDownGrpcServer(*server_, kFarewell);
    loop_.Stop();
  }

 private:
  PipelineDriver::Options DriverOptions(const ClusterController::Options& controller_options) {
    PipelineDriver::Options driver;
    driver.vocab_size = model_files_->config().vocab_size;
    driver.context_tokens = controller_options.context_tokens;
    driver.prefill_chunk = options_.prefill_chunk;
    driver.max_queued_jobs = options_.max_queued_jobs;
    driver.pipeline_timeout = options_.worker_timeout;
    driver.first_job_id = state_.job_ids.first();
    if (http_ != nullptr) driver.observer = http_->observer();
    driver.on_pipeline_broken = [this](uint64_t version, const absl::Status& why) {
      TellBroken(version, why);
    };
    driver.on_quiet = [this](uint64_t version, uint64_t next_version) {
      (void)loop_.Post(
          [this, version, next_version] { controller_.PipelineQuiet(version, next_version); });
    };
    return driver;
  }

  ServingShare::Options ShareOptions() {
    ServingShare::Options share;
    share.share = options_.share_files;
    share.steps_run = [this, last = int64_t{0}]() mutable {
      const PipelineStats stats = driver_->stats();
      return std::exchange(last, stats.steps) != stats.steps || stats.steps_in_flight > 0;
    };
    share.serves = [this] { return driver_->CheckServing().ok(); };
    return share;
  }

  std::vector<ShelvedFile> ListFiles(uint64_t fingerprint) const {
    if (fingerprint != model_files_->fingerprint()) return {};
    return pack_files_;
  }

  BatchRunner::Options RunnerOptions() {
    BatchRunner::Options runner;
    runner.store = state_.store.get();
    runner.book = &batches_;
    runner.driver = driver_.get();
    runner.model = served_model_;
    runner.max_jobs =
        std::clamp(options_.max_queued_jobs / kBatchShareOfQueue, int64_t{1}, kMaxBatchJobs);
    return runner;
  }

  ServedModel MakeServedModel(int64_t context_tokens) const {
    ServedModel model;
    model.name = options_.model_name;
    model.text = text_.get();
    model.context_tokens = context_tokens;
    model.vocab_size = model_files_->config().vocab_size;
    model.created = absl::ToUnixSeconds(absl::Now());
    return model;
  }

  std::unique_ptr<HttpFront> MakeHttpFront() {
    if (options_.http_listen.empty()) return nullptr;
    HttpFront::Options http;
    http.model = served_model_;
    http.batches = &batches_;
    http.listen = options_.http_listen;
    http.api_key_file = options_.api_key_file;
    http.certificate_not_after = [this]() -> std::optional<absl::Time> {
      if (!certificates_.has_value()) return std::nullopt;
      return certificates_->not_after();
    };
    return std::make_unique<HttpFront>(std::move(http));
  }

  /// On loop_.
  void Tick() {
    controller_.Tick();
    const absl::Status reserved = state_.job_ids.Extend(driver_->next_job_id());
    if (!reserved.ok()) LogWarning("job_ids_not_reserved", {{"why", reserved.message()}});
    if (http_serves_) http_->Update(controller_.Status());
  }

  /// Called by any thread.
  void TellBroken(uint64_t version, const absl::Status& why) {
    (void)loop_.Post([this, version, why] { controller_.PipelineBroken(version, why); });
  }

  absl::StatusOr<std::unique_ptr<ActivationChannel>> OpenFirstHop(
      const ClusterController::PipelineEnds& ends) {
    const uint64_t version = ends.plan_version;
    last_stage_.Expect(version, {ends.last.incarnation, ends.last.identity});
    GrpcChannelOptions channel;
    channel.address = ends.first.registration.address();
    channel.expected_incarnation = ends.first.incarnation;
    channel.name = ends.name;
    channel.own_incarnation = incarnation_;
    channel.security = options_.security;
    if (!ends.first.identity.empty()) {
      CARAVAN_ASSIGN_OR_RETURN(channel.expected_identity, ParseIdentity(ends.first.identity));
    }
    // The control loop waits meanwhile, and must not miss the workers' heartbeats for that long.
    channel.connect_timeout = options_.heartbeat_timeout / 2;
    channel.on_broken = [this, version](const absl::Status& why) { TellBroken(version, why); };
    return OpenGrpcChannel(channel);
  }

  const CoordinatorOptions options_;
  const uint64_t incarnation_;
  const std::unique_ptr<StoredModel> model_files_;
  const std::unique_ptr<TextModel> text_;
  State state_;  // its job ids belong to loop_
  BatchBook batches_;
  const ServedModel served_model_;
  const std::unique_ptr<HttpFront> http_;  // null: none is served
  std::unique_ptr<PipelineDriver> driver_;
  ClusterController controller_;  // lives on loop_
  bool http_serves_ = false;      // the same
  ControlLoop loop_;
  ClusterService cluster_service_;
  JobService job_service_;
  BatchGrpcService batch_service_;
  ServingShare share_;  // of the weights that it passes on
  ModelFilesService model_files_service_;
  std::vector<ShelvedFile> pack_files_;  // set by Listen; empty: the model is not packed
  PackFilesService pack_files_service_;
  SenderGate last_stage_;  // whose steps come home
  PipelineService pipeline_service_;
  ProbeService probe_service_;
  std::unique_ptr<EnrolmentService> enrolment_service_;  // null: there are no certificates
  std::optional<CertificateWatcher> certificates_;       // the same
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<BatchRunner> runner_;
  std::string address_;
  bool stopped_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CoordinatorServer>> CoordinatorServer::Start(
    CoordinatorOptions options) {
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<StoredModel> model_files,
                           OpenStoredModel(options.model_directory));
  CARAVAN_ASSIGN_OR_RETURN(
      std::unique_ptr<TextModel> text,
      TextModel::Load(options.tokenizer_directory.empty() ? options.model_directory
                                                          : options.tokenizer_directory,
                      model_files->config()));

  ClusterController::Options controller;
  // Workers may run elsewhere on this machine, so they get the whole path.
  const std::filesystem::path directory =
      std::filesystem::absolute(options.model_directory).lexically_normal();
  controller.model.set_directory(directory.string());
  if (options.model_name.empty()) {
    // A path that ends with / has no file name.
    options.model_name =
        (directory.has_filename() ? directory : directory.parent_path()).filename().string();
  }
  controller.model.set_fingerprint(model_files->fingerprint());
  controller.model.set_config_json(model_files->config_json());
  controller.config = model_files->config();
  CARAVAN_ASSIGN_OR_RETURN(controller.model_identity,
                           ModelIdentity(*model_files, options.model_directory));
  CARAVAN_ASSIGN_OR_RETURN(controller.cost, CostOfStoredModel(*model_files, options.speculate));
  controller.min_workers = options.min_workers;
  const int64_t model_context = model_files->config().max_position_embeddings;
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
  controller.aim = options.aim;
  controller.heartbeat_timeout = options.heartbeat_timeout;
  controller.heartbeat_interval = options.heartbeat_timeout / 2;
  controller.rejoin_delay = options.rejoin_delay;
  controller.incarnation = NewIncarnation();
  if (options.security.tls != nullptr) {
    const Identity& self = options.security.tls->identity();
    if (self.role != Role::kCoordinator) {
      return absl::InvalidArgumentError(
          absl::StrCat(options.security.tls->directory(), ": a certificate of ", ToString(self),
                       ", and a coordinator needs a coordinator's (caravan certs init)"));
    }
    controller.identity = ToString(self);
  }

  absl::StatusOr<State> state = OpenState(options.state, model_files->fingerprint());
  if (!state.ok()) return Annotate(state.status(), "--state");
  auto server = std::make_unique<Server>(options, std::move(model_files), std::move(text),
                                         *std::move(state), std::move(controller));
  CARAVAN_RETURN_IF_ERROR(server->Listen());
  LogInfo("coordinator_listening",
          {{"address", server->address()}, {"model", options.model_directory}});
  return server;
}

}  // namespace caravan
