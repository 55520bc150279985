#include "worker/session.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/bounded_queue.h"
#include "base/file.h"
#include "base/int_math.h"
#include "base/log.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "caravan/v1/cluster.grpc.pb.h"
#include "cluster/grpc_channel.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"
#include "cluster/incarnation.h"
#include "cluster/pack_files_service.h"
#include "cluster/peer_address.h"
#include "cluster/pipeline_service.h"
#include "cluster/probe_service.h"
#include "cluster/protocol_version.h"
#include "cluster/serving_share.h"
#include "model/pack/packed_model.h"
#include "model/stored_model.h"
#include "worker/files/model_fetch.h"
#include "worker/files/remote_file_source.h"
#include "worker/kv_archive_news.h"
#include "worker/kv_blocks_service.h"
#include "worker/kv_peer_channel.h"
#include "worker/kv_wire.h"
#include "worker/process_memory.h"
#include "worker/remote_tensor_source.h"
#include "worker/worker.h"

namespace caravan {
namespace {

// Reports that wait for the link. Progress makes the most of them, about a hundred a stage.
constexpr size_t kQueuedReports = 1024;

// How long a leaving worker waits for streams to end by themselves.
constexpr absl::Duration kFarewell = absl::Seconds(2);

// A coordinator that takes longer to answer is waited for aloud.
constexpr absl::Duration kQuietWait = absl::Milliseconds(200);

using AttendStream = grpc::ClientReaderWriter<v1::WorkerReport, v1::WorkerOrder>;

class Session {
 public:
  Session(const WorkerSessionOptions& options, std::stop_token stop)
      : options_(options),
        stop_(std::move(stop)),
        reports_(kQueuedReports),
        worker_(MakeEnvironment()),
        give_share_(MakeShare()),
        take_share_(MakeShare()),
        pipeline_service_(
            incarnation_, [this](v1::Step step) { return worker_.Receive(std::move(step)); },
            &worker_.sender_gate()),
        pack_files_service_(
            incarnation_, [this](uint64_t fingerprint) { return ListFiles(fingerprint); },
            &give_share_) {}

  absl::Status Run() {
    LookAtLocalModel();
    CARAVAN_RETURN_IF_ERROR(Listen());
    absl::Status status = Attend();
    worker_.Drop();
    ShutDownGrpcServer(*server_, kFarewell);
    if (stop_.stop_requested()) return absl::OkStatus();
    MutexLock lock(&mu_);
    return card_lost_.ok() ? status : card_lost_;
  }

 private:
  Worker::Environment MakeEnvironment() {
    Worker::Environment environment;
    environment.name = absl::StrCat("worker ", options_.name);
    environment.kv_dtype = options_.kv_dtype;
    environment.kv_disk_directory = options_.kv_disk_directory;
    environment.kv_archive = [this](const v1::KvArchives& archives) { return KvPlace(archives); };
    environment.experts = options_.experts;
    environment.expert_heat = options_.expert_heat;
    environment.record_routing = options_.record_routing;
    environment.make_backend = [this](const ModelConfig& config, int64_t max_rows) {
      return options_.device->MakeBackend(config, max_rows);
    };
    environment.card_ram_bytes = options_.memory_budget_bytes - ProcessBytes(options_.num_threads);
    environment.make_cpu = [this] { return options_.device->MakeCpu(); };
    environment.check_device = [this] { return options_.device->Check(); };
    environment.card_transport = options_.card_transport;
    environment.requires_card_transport = options_.requires_card_transport;
    environment.show_progress = options_.show_progress;
    environment.open_model = [this](const v1::LoadStage& order, const LoadProgress& progress,
                                    std::stop_token stop) {
      return OpenModel(order, progress, std::move(stop));
    };
    environment.open_next_hop = [this](const v1::LoadStage& order,
                                       std::function<void(absl::Status)> on_broken,
                                       std::stop_token stop) {
      return OpenNextHop(order, std::move(on_broken), std::move(stop));
    };
    environment.on_card_lost = [this](const absl::Status& why) {
      {
        MutexLock lock(&mu_);
        card_lost_ = Annotate(why, "the card is lost");
      }
      Leave();
    };
    environment.report = [this](v1::WorkerReport report) {
      if (report.failure().code() == static_cast<int32_t>(absl::StatusCode::kDataLoss)) {
        DoubtFiles(report.failure().plan_version());
      }
      const bool is_ready = report.has_ready();
      Enqueue(std::move(report));
      if (is_ready) TellOfNewStage();
    };
    return environment;
  }

  /// Never waits. Where the link takes no reports any more, progress and what changed of the
  /// archive can be missed, and false is returned; anything else can not, and ends the session.
  bool Enqueue(v1::WorkerReport report) {
    const bool dispensable = report.has_progress() || report.has_kv_archive();
    if (reports_.TryPush(std::move(report))) return true;
    if (!dispensable) reports_.Close();
    return false;
  }

  /// Says so; the coordinator then ends the stream.
  void Leave() {
    v1::WorkerReport farewell;
    farewell.mutable_departure();
    Enqueue(std::move(farewell));
    reports_.Close();
  }

  absl::Status Listen() {
    std::vector<grpc::Service*> services = {&pipeline_service_, &probe_service_,
                                            &pack_files_service_};
    if (options_.kv_store != nullptr) {
      kv_blocks_service_.emplace(incarnation_, options_.kv_store, [this] { TellOfArchive(); });
      services.push_back(&*kv_blocks_service_);
    }
    CARAVAN_ASSIGN_OR_RETURN(GrpcServer started,
                             StartGrpcServer(options_.listen, services, options_.security));
    server_ = std::move(started.server);
    port_ = started.port;
    return absl::OkStatus();
  }

  absl::Status Attend() {
    const std::shared_ptr<grpc::Channel> channel = CoordinatorChannel();
    CARAVAN_RETURN_IF_ERROR(WaitUntilConnected(*channel));
    const std::unique_ptr<v1::Cluster::Stub> stub = v1::Cluster::NewStub(channel);
    grpc::ClientContext context;
    const std::unique_ptr<AttendStream> stream = stub->Attend(&context);
    Enqueue(MakeRegistration());

    v1::WorkerOrder order;
    absl::Status status;
    {
      NamedThread writer("report-writer", [&] { WriteReports(*stream); });
      std::stop_callback leave(stop_, [this] { Leave(); });
      bool dismissed = false;
      absl::Status refused;
      while (stream->Read(&order)) {
        if (order.has_welcome()) {
          refused = CheckWelcome(order.welcome());
          if (refused.ok()) {
            Welcomed(order.welcome());
          } else {
            Leave();
          }
        } else if (order.has_dismissal()) {
          dismissed = true;
          LogInfo("dismissed", {{"reason", order.dismissal().reason()}});
          // Before the neighbours are missed; then the coordinator's stream can end.
          worker_.Drop();
          reports_.Close();
        } else if (refused.ok()) {
          Handle(order);
        }
      }
      reports_.Close();
      writer.Join();
      status = FromGrpcStatus(stream->Finish());
      // However the coordinator ended the stream then.
      if (dismissed) status = absl::UnavailableError("the coordinator is leaving");
      if (!refused.ok()) status = refused;
    }
    if (status.ok()) status = absl::UnavailableError("the coordinator ended the connection");
    return Annotate(status, absl::StrCat("coordinator ", options_.coordinator));
  }

  absl::Status WaitUntilConnected(grpc::Channel& channel) {
    if (channel.WaitForConnected(absl::ToChronoTime(absl::Now() + kQuietWait))) {
      return absl::OkStatus();
    }
    LogInfo("waiting_for_coordinator", {{"coordinator", options_.coordinator}});
    return WaitForConnection(channel, options_.coordinator, options_.security,
                             options_.connect_timeout, stop_);
  }

  std::shared_ptr<grpc::Channel> CoordinatorChannel() const {
    ChannelOptions channel;
    channel.security = options_.security;
    return MakeGrpcChannel(options_.coordinator, channel);
  }

  static absl::Status CheckWelcome(const v1::Welcome& welcome) {
    if (welcome.protocol_version() == kProtocolVersion) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(
        "it speaks version ", welcome.protocol_version(), " of the protocol, and this worker ",
        kProtocolVersion, ": all processes of a cluster must be of one version"));
  }

  /// Finds out what --model names, for the coordinator and for others who want its files. What
  /// cannot be opened is said when a stage is to be loaded from it.
  void LookAtLocalModel() {
    if (options_.model_directory.empty()) return;
    const absl::StatusOr<std::unique_ptr<StoredModel>> local = OpenModelDirectory();
    if (!local.ok()) return;
    local_fingerprint_ = (*local)->fingerprint();
    const auto* const pack = dynamic_cast<const PackedModel*>(local->get());
    if (pack == nullptr) return;
    absl::StatusOr<std::vector<ShelvedFile>> files = FilesOfPack(*pack);
    if (files.ok()) local_files_ = *std::move(files);
  }

  /// What this worker has of the packed model, for others.
  std::vector<ShelvedFile> ListFiles(uint64_t fingerprint) const {
    if (fingerprint == local_fingerprint_) return local_files_;
    if (options_.model_cache != nullptr) return options_.model_cache->List(fingerprint);
    return {};
  }

  ServingShare::Options MakeShare() {
    ServingShare::Options share;
    share.share = options_.share_files;
    // The time grows while a step is worked on.
    share.steps_run = [this, last = 0.0]() mutable {
      const double busy_s = worker_.load().busy_s();
      return std::exchange(last, busy_s) != busy_s;
    };
    share.serves = [this] { return worker_.has_stage(); };
    return share;
  }

  v1::WorkerReport MakeRegistration() const {
    v1::WorkerReport report;
    v1::Registration& registration = *report.mutable_registration();
    registration.set_protocol_version(kProtocolVersion);
    registration.set_model_fingerprint(local_fingerprint_);
    registration.set_shares_files(!local_files_.empty() || options_.model_cache != nullptr);
    registration.set_machine(options_.machine);
    for (const std::string& network : options_.trusted_networks) {
      registration.add_trusted_networks(network);
    }
    registration.set_requires_nccl(options_.requires_card_transport);
    registration.set_name(options_.name);
    registration.set_address(options_.advertise.empty() ? absl::StrCat(":", port_)
                                                        : options_.advertise);
    const ComputeDevice& device = *options_.device;
    registration.set_device(device.Name());
    registration.set_on_card(device.is_card());
    if (options_.card_transport != nullptr) {
      registration.set_nccl_version(options_.card_transport->version());
      registration.set_nccl_card(options_.card_transport->card());
    }
    registration.set_memory_budget_bytes(static_cast<uint64_t>(
        device.is_card() ? device.memory_budget_bytes() : options_.memory_budget_bytes));
    registration.set_num_threads(static_cast<uint32_t>(options_.num_threads));
    registration.set_kv_dtype(std::string(DTypeName(options_.kv_dtype)));
    registration.set_kv_disk_bytes(static_cast<uint64_t>(options_.kv_disk_bytes));
    if (options_.kv_store != nullptr) {
      registration.set_kv_archive_bytes(static_cast<uint64_t>(options_.kv_store->budget_bytes()));
      registration.set_kv_replicates(options_.kv_replicates);
    }
    registration.set_offloads(options_.offloads);
    registration.set_box(options_.box);
    if (!device.is_card()) {
      registration.set_process_bytes(static_cast<uint64_t>(ProcessBytes(options_.num_threads)));
    }
    return report;
  }

  void Welcomed(const v1::Welcome& welcome) {
    {
      MutexLock lock(&mu_);
      coordinator_incarnation_ = welcome.coordinator_incarnation();
      heartbeat_interval_ = absl::Milliseconds(welcome.heartbeat_interval_ms());
    }
    LogInfo("joined", {{"coordinator", options_.coordinator},
                       {"worker_id", welcome.worker_id()},
                       {"name", options_.name}});
    if (options_.kv_store == nullptr) return;
    {
      MutexLock lock(&archive_mu_);
      // As the registration says.
      archive_told_.emplace().set_room_bytes(
          static_cast<uint64_t>(options_.kv_store->budget_bytes()));
    }
    TellOfArchive();
  }

  /// Writes what is queued, and a heartbeat whenever nothing was for an interval.
  void WriteReports(AttendStream& stream) {
    while (true) {
      absl::Duration interval;
      {
        MutexLock lock(&mu_);
        interval = heartbeat_interval_;
      }
      std::optional<v1::WorkerReport> report = reports_.PopWithTimeout(interval);
      if (!report.has_value()) {
        if (reports_.closed()) break;
        *report.emplace().mutable_heartbeat()->mutable_load() = worker_.load();
      }
      report->set_incarnation(incarnation_);
      if (!stream.Write(*report)) return;
    }
    stream.WritesDone();
  }

  /// The worker's orders. With a stage go the leases on the files that it was loaded from.
  void Handle(const v1::WorkerOrder& order) {
    if (order.has_load_stage()) {
      MutexLock lock(&mu_);
      loads_plan_ = order.load_stage().plan_version();
      std::erase_if(leases_, [this](const auto& lease) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return lease.first != loads_plan_;
      });
    }
    worker_.Handle(order);
    if (order.has_drop_stage()) {
      MutexLock lock(&mu_);
      leases_.erase(order.drop_stage().plan_version());
    }
  }

  /// A stage could not read what was kept for it: its next start finds out what is wrong.
  void DoubtFiles(uint64_t plan_version) {
    MutexLock lock(&mu_);
    const auto lease = leases_.find(plan_version);
    if (lease != leases_.end()) options_.model_cache->Doubt(*lease->second);
  }

  absl::StatusOr<std::unique_ptr<TensorSource>> OpenModel(const v1::LoadStage& order,
                                                          const LoadProgress& progress,
                                                          std::stop_token stop) {
    const v1::ModelReference& model = order.model();
    CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<StoredModel> local, OpenLocalModel(model));
    if (local != nullptr) return local;
    std::string no_copy =
        "no local copy of the pack is here: give --model or --model-cache DIRECTORY";
    if (options_.model_cache != nullptr) {
      absl::StatusOr<std::unique_ptr<PackedModel>> cached = OpenCachedModel(order, progress, stop);
      if (cached.ok()) return *std::move(cached);
      const absl::Status why = Annotate(cached.status(), "--model-cache");
      // Without room for a copy the stage can still be read into memory.
      if (!absl::IsResourceExhausted(why) && !absl::IsUnimplemented(why)) return why;
      // When the stage is loaded, the present one's files may go.
      if (absl::IsResourceExhausted(why) && HoldsFilesOfOthers(order.plan_version())) return why;
      LogWarning("model_not_cached", {{"why", why.message()}});
      no_copy = absl::StrCat(why.message(), ": give more room");
    }
    // Only a pack's experts are left on disks, so a local copy would have been one.
    if (order.expert_budget_bytes() > 0) {
      constexpr int64_t kMiB = int64_t{1} << 20;
      return absl::FailedPreconditionError(
          absl::StrCat("its experts do not fit in memory, and ", no_copy, ", or --ram of at least ",
                       CeilDiv(static_cast<int64_t>(order.resident_budget_bytes()), kMiB), "MiB"));
    }
    LogInfo("reading_weights_from_coordinator", {{"coordinator", options_.coordinator}});
    RemoteTensorSource::Options source;
    source.coordinator = CoordinatorChannel();
    source.fingerprint = model.fingerprint();
    source.connect_timeout = options_.connect_timeout;
    source.share = &take_share_;
    source.stop = std::move(stop);
    return RemoteTensorSource::Connect(std::move(source));
  }

  /// Whether files in the cache must stay for the stage of another plan.
  bool HoldsFilesOfOthers(uint64_t plan_version) {
    MutexLock lock(&mu_);
    return std::any_of(leases_.begin(), leases_.end(),
                       [plan_version](const auto& lease) { return lease.first != plan_version; });
  }

  /// Errors: as FetchModel.
  absl::StatusOr<std::unique_ptr<PackedModel>> OpenCachedModel(const v1::LoadStage& order,
                                                               const LoadProgress& progress,
                                                               const std::stop_token& stop) {
    CARAVAN_ASSIGN_OR_RETURN(const std::vector<std::unique_ptr<FileSource>> owned,
                             MakeFileSources(order));
    std::vector<FileSource*> sources;
    for (const std::unique_ptr<FileSource>& source : owned) sources.push_back(source.get());
    CARAVAN_ASSIGN_OR_RETURN(CachedModel cached,
                             FetchModel(order, *options_.model_cache, sources, progress, stop));
    MutexLock lock(&mu_);
    // Not if another plan has come meanwhile: nobody would end that lease.
    if (order.plan_version() >= loads_plan_) {
      leases_[order.plan_version()] = std::move(cached.lease);
    }
    return std::move(cached.model);
  }

  /// The coordinator first.
  absl::StatusOr<std::vector<std::unique_ptr<FileSource>>> MakeFileSources(
      const v1::LoadStage& order) {
    RemoteFileSource::Options source;
    source.security = options_.security;
    source.fingerprint = order.model().fingerprint();
    source.share = &take_share_;
    source.peer.name = "coordinator";
    source.peer.address = options_.coordinator;
    {
      MutexLock lock(&mu_);
      source.peer.incarnation = coordinator_incarnation_;
    }
    std::vector<std::unique_ptr<FileSource>> sources;
    sources.push_back(std::make_unique<RemoteFileSource>(source));
    for (const v1::Peer& worker : order.model_sources()) {
      CARAVAN_ASSIGN_OR_RETURN(source.peer, PeerFromProto(worker));
      sources.push_back(std::make_unique<RemoteFileSource>(source));
    }
    return sources;
  }

  absl::StatusOr<std::unique_ptr<StoredModel>> OpenModelDirectory() const {
    if (options_.mirrors.empty()) return OpenStoredModel(options_.model_directory);
    return PackedModel::Open(options_.model_directory, options_.mirrors);
  }

  /// Null where there is none. Errors: what --model names is not the model.
  absl::StatusOr<std::unique_ptr<StoredModel>> OpenLocalModel(const v1::ModelReference& model) {
    if (!options_.model_directory.empty()) {
      CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<StoredModel> local, OpenModelDirectory());
      if (local->fingerprint() != model.fingerprint()) {
        return absl::FailedPreconditionError(
            absl::StrCat(options_.model_directory, " is not the coordinator's model"));
      }
      return local;
    }
    // The coordinator's own directory, when this machine has it too (the same machine, or a shared
    // disk) and the same model lies in it.
    if (!FileExists(model.directory())) return nullptr;
    absl::StatusOr<std::unique_ptr<StoredModel>> local = OpenStoredModel(model.directory());
    if (local.ok() && (*local)->fingerprint() == model.fingerprint()) return *std::move(local);
    LogWarning("local_copy_skipped", {{"directory", model.directory()},
                                      {"why", local.ok() ? "it is not the coordinator's model"
                                                         : std::string(local.status().message())}});
    return nullptr;
  }

  absl::StatusOr<KvArchive::Place> KvPlace(const v1::KvArchives& archives) {
    KvArchive::Place place;
    if (options_.kv_store == nullptr) return place;
    place.store = options_.kv_store;
    for (const v1::Peer& peer : archives.peers()) {
      CARAVAN_ASSIGN_OR_RETURN(place.peers.emplace_back(), OpenKvPeer(peer));
    }
    if (archives.has_replica()) {
      CARAVAN_ASSIGN_OR_RETURN(place.replica, OpenKvPeer(archives.replica()));
    }
    for (const v1::KvLayerRange& layers : archives.incoming()) {
      CARAVAN_ASSIGN_OR_RETURN(place.incoming.emplace_back(), LayersFromProto(layers));
    }
    place.replica_blocks =
        static_cast<int64_t>(std::min<uint64_t>(archives.replica_blocks(), kMostArchivedNames));
    place.on_change = [this] { TellOfArchive(); };
    return place;
  }

  /// Tells the coordinator what has changed of the archive, once it has been told that there is
  /// one.
  void TellOfArchive() {
    MutexLock lock(&archive_mu_);
    TellOfArchiveLocked();
  }

  /// The coordinator has been told that the stage is ready. What it was told of the stage's archive
  /// before was of nothing that it knew, and StageReady says how that was some time ago.
  void TellOfNewStage() {
    MutexLock lock(&archive_mu_);
    if (archive_told_.has_value()) archive_told_->set_plan_version(0);
    TellOfArchiveLocked();
  }

  void TellOfArchiveLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(archive_mu_) {
    if (!archive_told_.has_value()) return;
    v1::KvArchiveNews news = worker_.kv_archive_news();
    news.set_room_bytes(static_cast<uint64_t>(options_.kv_store->room_bytes()));
    if (!IsWorthTelling(*archive_told_, news)) return;
    v1::WorkerReport report;
    *report.mutable_kv_archive() = news;
    if (Enqueue(std::move(report))) archive_told_ = std::move(news);
  }

  absl::StatusOr<std::shared_ptr<KvPeer>> OpenKvPeer(const v1::Peer& peer) const {
    KvPeerOptions options;
    CARAVAN_ASSIGN_OR_RETURN(options.peer, PeerFromProto(peer));
    options.security = options_.security;
    return MakeKvPeerChannel(options);
  }

  absl::StatusOr<std::unique_ptr<ActivationChannel>> OpenNextHop(
      const v1::LoadStage& order, std::function<void(absl::Status)> on_broken,
      std::stop_token stop) {
    GrpcChannelOptions channel;
    channel.on_broken = std::move(on_broken);
    channel.stop = std::move(stop);
    channel.own_incarnation = incarnation_;
    channel.security = options_.security;
    if (order.next_address().empty()) {
      channel.address = options_.coordinator;
      channel.name = "coordinator";
      MutexLock lock(&mu_);
      channel.expected_incarnation = coordinator_incarnation_;
    } else {
      channel.address = order.next_address();
      channel.name = order.next_name();
      channel.expected_incarnation = order.next_incarnation();
      if (!order.next_identity().empty()) {
        CARAVAN_ASSIGN_OR_RETURN(channel.expected_identity, ParseIdentity(order.next_identity()));
      }
    }
    return OpenGrpcChannel(channel);
  }

  const WorkerSessionOptions& options_;
  const std::stop_token stop_;
  const uint64_t incarnation_ = NewIncarnation();
  int port_ = 0;                          // set by Listen
  uint64_t local_fingerprint_ = 0;        // set by LookAtLocalModel; 0: of no model
  std::vector<ShelvedFile> local_files_;  // the same

  Mutex mu_;
  uint64_t coordinator_incarnation_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status card_lost_ ABSL_GUARDED_BY(mu_);
  uint64_t loads_plan_ ABSL_GUARDED_BY(mu_) = 0;  // of the last LoadStage
  // By plan, that one and one that is prepared: on what its stage is loaded from.
  std::map<uint64_t, std::unique_ptr<ModelCache::Lease>> leases_ ABSL_GUARDED_BY(mu_);
  // Until Welcome names one: short, so that it is heeded soon.
  absl::Duration heartbeat_interval_ ABSL_GUARDED_BY(mu_) = absl::Milliseconds(50);

  Mutex archive_mu_;
  std::optional<v1::KvArchiveNews> archive_told_ ABSL_GUARDED_BY(archive_mu_);  // since Welcome

  BoundedQueue<v1::WorkerReport> reports_;  // own synchronisation
  Worker worker_;
  ServingShare give_share_;  // of files that others take
  ServingShare take_share_;  // of files and tensors that come
  PipelineService pipeline_service_;
  ProbeService probe_service_;
  std::optional<KvBlocksService> kv_blocks_service_;  // where there is an archive
  PackFilesService pack_files_service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::Status RunWorkerSession(const WorkerSessionOptions& options, std::stop_token stop) {
  return Session(options, std::move(stop)).Run();
}

}  // namespace caravan
