#include "worker/worker.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "cluster/pipeline_plan.h"
#include "kernels/memory.h"
#include "model/tensor_table.h"
#include "worker/experts/stage_trace.h"

namespace caravan {
namespace {

// Reports of progress for one stage: enough for a smooth bar, few enough to cost nothing.
constexpr int64_t kProgressReports = 100;

}  // namespace

Worker::Worker(Environment environment) : environment_(std::move(environment)) {}

Worker::~Worker() { Drop(); }

void Worker::Handle(const v1::WorkerOrder& order) {
  if (order.has_load_stage()) {
    StopLoading();
    DropStage();
    preparing_ = 0;
    invitation_.emplace(/*capacity=*/1);
    StartLoading(
        [this, load = order.load_stage()](const std::stop_token& stop) { Load(load, stop); });
  } else if (order.has_prepare_stage()) {
    StopLoading();
    DropPrepared();
    preparing_ = order.prepare_stage().stage().plan_version();
    const bool beside_another = has_stage();
    if (beside_another) {
      MutexLock lock(&mu_);
      held_ = loop_->held_weights();
    }
    StartLoading([this, beside_another, prepare = order.prepare_stage()](
                     const std::stop_token& stop) { Prepare(prepare, beside_another, stop); });
  } else if (order.has_drop_stage()) {
    StopLoading();
    DropPrepared();
    if (order.drop_stage().plan_version() != preparing_) {
      DropStage();
    } else if (has_stage()) {
      held_.clear();  // what the present stage has it keeps
    }
    preparing_ = 0;
    LogInfo("stage_dropped", {{"plan", order.drop_stage().plan_version()}});
  } else if (order.has_join_hop() && invitation_.has_value()) {
    // One that is not wanted finds no room, or is never taken.
    static_cast<void>(invitation_->TryPush(order.join_hop()));
  } else if (order.has_set_kv_replica()) {
    SetReplica(order.set_kv_replica());
  }
}

void Worker::SetReplica(const v1::SetKvReplica& order) {
  std::shared_ptr<StepLoop> loop;
  {
    MutexLock lock(&mu_);
    loop = loop_;
  }
  if (loop == nullptr || loop->plan_version() != order.plan_version()) return;
  const absl::StatusOr<KvArchive::Place> place = environment_.kv_archive(order.kv_archives());
  if (!place.ok()) {
    LogWarning("kv_replica_not_set", {{"why", place.status().message()}});
    return;
  }
  loop->SetReplica(*place);
  LogInfo("kv_replica_set",
          {{"plan", order.plan_version()},
           {"to", place->replica == nullptr ? "nobody" : place->replica->name()}});
}

v1::KvArchiveNews Worker::kv_archive_news() const {
  MutexLock lock(&mu_);
  return loop_ == nullptr ? v1::KvArchiveNews() : loop_->kv_archive_news();
}

void Worker::StartLoading(std::function<void(const std::stop_token& stop)> body) {
  stop_loading_ = std::stop_source();
  loader_.emplace("stage-loader",
                  [body = std::move(body), stop = stop_loading_.get_token()] { body(stop); });
}

bool Worker::has_stage() const {
  MutexLock lock(&mu_);
  return loop_ != nullptr;
}

void Worker::StopLoading() {
  stop_loading_.request_stop();
  loader_.reset();
}

void Worker::Drop() {
  StopLoading();
  DropStage();
  DropPrepared();
  held_.clear();
  held_experts_ = HeldExperts();
}

void Worker::DropStage() {
  std::shared_ptr<StepLoop> old;
  {
    MutexLock lock(&mu_);
    if (loop_ != nullptr) AddLoad(loop_->load(), past_load_);
    old.swap(loop_);
  }
  // Whoever is inside Receive keeps the loop alive, but not at work.
  if (old == nullptr) return;
  old->Stop();
  held_.merge(old->held_weights());
  held_experts_ = old->ReleaseExperts();
}

void Worker::Keep(Stage& stage) {
  held_.merge(stage.weights().held());
  held_experts_ = stage.ReleaseExperts();
}

void Worker::DropPrepared() {
  if (!prepared_.has_value()) return;
  Keep(*prepared_->stage);
  prepared_.reset();
}

absl::Status Worker::Receive(v1::Step step) {
  std::shared_ptr<StepLoop> loop;
  {
    MutexLock lock(&mu_);
    loop = loop_;
  }
  if (loop == nullptr) {
    return absl::AbortedError(
        absl::StrCat(environment_.name, " holds no stage of plan ", step.plan_version()));
  }
  return loop->Receive(std::move(step));
}

v1::WorkerLoad Worker::load() const {
  MutexLock lock(&mu_);
  v1::WorkerLoad sum = past_load_;
  if (loop_ != nullptr) AddLoad(loop_->load(), sum);
  return sum;
}

void Worker::Load(const v1::LoadStage& order, const std::stop_token& stop) {
  const TellFailure tell_failure = MakeTellFailure(order.plan_version());
  v1::StageReady ready;
  v1::HopEnd unjoined = v1::HOP_END_UNSPECIFIED;
  absl::StatusOr<std::shared_ptr<StepLoop>> loop =
      TryLoad(order, stop, tell_failure, ready, unjoined);
  if (!loop.ok()) {
    if (!stop.stop_requested()) ReportFailure(loop.status(), unjoined, tell_failure);
    return;
  }
  held_.clear();
  sender_gate_.Expect(order.plan_version(), {order.sender_incarnation(), order.sender_identity()});
  {
    MutexLock lock(&mu_);
    loop_ = *std::move(loop);
  }
  LogInfo("stage_ready", {{"plan", order.plan_version()},
                          {"first_layer", order.stage().first_layer()},
                          {"end_layer", order.stage().end_layer()},
                          {"kv_blocks", ready.kv_blocks()},
                          {"kv_blocks_on_disk", ready.kv_blocks_on_disk()}});
  v1::WorkerReport report;
  *report.mutable_ready() = ready;
  environment_.report(std::move(report));
}

void Worker::ReportFailure(const absl::Status& why, v1::HopEnd unjoined,
                           const TellFailure& tell_failure) {
  // Trying again would fail again, for ever.
  const bool lost = absl::IsInternal(why) && !environment_.check_device().ok();
  tell_failure(lost ? Annotate(why, "the card is lost") : why,
               lost ? v1::HOP_END_UNSPECIFIED : unjoined);
  if (lost) environment_.on_card_lost(why);
}

void Worker::Prepare(const v1::PrepareStage& order, bool beside_another,
                     const std::stop_token& stop) {
  const uint64_t version = order.stage().plan_version();
  absl::Status status;
  if (beside_another) {
    status = PrepareBeside(order, stop);
  } else {
    absl::StatusOr<std::unique_ptr<Stage>> stage = MakeStage(order.stage(), stop);
    status = stage.status();
    if (stage.ok()) prepared_ = Prepared{order.stage(), *std::move(stage)};
  }
  if (stop.stop_requested()) return;
  if (!status.ok()) {
    ReportFailure(status, v1::HOP_END_UNSPECIFIED, MakeTellFailure(version));
    return;
  }
  LogInfo("stage_prepared", {{"plan", version},
                             {"first_layer", order.stage().stage().first_layer()},
                             {"end_layer", order.stage().stage().end_layer()},
                             {"whole", !beside_another}});
  v1::WorkerReport report;
  report.mutable_prepared()->set_plan_version(version);
  environment_.report(std::move(report));
}

absl::Status Worker::PrepareBeside(const v1::PrepareStage& order, const std::stop_token& stop) {
  // The steps of the present stage go first.
  YieldToOthers();
  const v1::LoadStage& load = order.stage();
  CARAVAN_ASSIGN_OR_RETURN(
      const ModelConfig config,
      ParseModelConfig(load.model().config_json(), "the coordinator's config.json"));
  CARAVAN_ASSIGN_OR_RETURN(const StageSpec spec, StageFromProto(load.stage()));
  // Which brings the files that are not here.
  LoadProgress progress;
  const absl::StatusOr<std::unique_ptr<TensorSource>> opened = OpenModel(load, stop, progress);
  if (absl::IsResourceExhausted(opened.status())) {
    // There may be room when the present stage goes: until then nothing can be prepared.
    LogInfo("nothing_prepared",
            {{"plan", load.plan_version()}, {"why", opened.status().message()}});
    return absl::OkStatus();
  }
  if (!opened.ok()) return opened.status();
  const TensorSource& source = **opened;
  if (order.memory_bytes() == 0) return absl::OkStatus();
  CARAVAN_RETURN_IF_ERROR(CheckTensors(source, StageTensors(config, spec)).status());
  return LoadWeightParts(config, PartsOf(config, spec, load.expert_budget_bytes() == 0), source,
                         held_, HostMemory(), progress, static_cast<int64_t>(order.memory_bytes()));
}

LoadProgress Worker::ReportProgress(uint64_t plan_version, const std::stop_token& stop) const {
  return [this, plan_version, stop, next_report = int64_t{0}](int64_t loaded_bytes,
                                                              int64_t total_bytes) mutable {
    if (loaded_bytes >= next_report || loaded_bytes == total_bytes) {
      next_report = loaded_bytes + total_bytes / kProgressReports;
      environment_.show_progress(loaded_bytes, total_bytes);
      v1::WorkerReport report;
      report.mutable_progress()->set_plan_version(plan_version);
      report.mutable_progress()->set_loaded_bytes(static_cast<uint64_t>(loaded_bytes));
      report.mutable_progress()->set_total_bytes(static_cast<uint64_t>(total_bytes));
      environment_.report(std::move(report));
    }
    return !stop.stop_requested();
  };
}

absl::StatusOr<std::unique_ptr<TensorSource>> Worker::OpenModel(const v1::LoadStage& order,
                                                                const std::stop_token& stop,
                                                                LoadProgress& progress) const {
  const LoadProgress tell = ReportProgress(order.plan_version(), stop);
  int64_t fetched_bytes = 0;
  const auto fetch_progress = [&](int64_t done_bytes, int64_t total_bytes) {
    fetched_bytes = done_bytes;
    return tell(done_bytes, total_bytes);
  };
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<TensorSource> source,
                           environment_.open_model(order, fetch_progress, stop));
  progress = [tell, fetched_bytes](int64_t loaded_bytes, int64_t total_bytes) {
    return tell(fetched_bytes + loaded_bytes, fetched_bytes + total_bytes);
  };
  return source;
}

absl::StatusOr<HopLinks> Worker::MakeLinks(const v1::LoadStage& order, const std::stop_token& stop,
                                           v1::HopEnd& unjoined) {
  HopLinksOptions options;
  options.transport = environment_.card_transport.get();
  options.required = environment_.requires_card_transport;
  options.report = environment_.report;
  options.invitation = &*invitation_;
  CARAVAN_ASSIGN_OR_RETURN(HopLinks links, JoinHops(order, options, stop, unjoined));
  if (order.has_next()) {
    const v1::Hop& next = order.next();
    LogInfo("next_hop", {{"plan", order.plan_version()},
                         {"to", next.neighbour()},
                         {"transport", next.by_nccl() ? "nccl" : "tcp"},
                         {"why", next.why()}});
  }
  return links;
}

absl::StatusOr<std::unique_ptr<Stage>> Worker::MakeStage(const v1::LoadStage& order,
                                                         const std::stop_token& stop) {
  CARAVAN_ASSIGN_OR_RETURN(
      const ModelConfig config,
      ParseModelConfig(order.model().config_json(), "the coordinator's config.json"));
  CARAVAN_ASSIGN_OR_RETURN(const StageSpec spec, StageFromProto(order.stage()));
  LoadProgress progress;
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<TensorSource> source,
                           OpenModel(order, stop, progress));

  Stage::Options options;
  options.name = environment_.name;
  options.kv_dtype = environment_.kv_dtype;
  options.kv_budget_bytes = static_cast<int64_t>(order.kv_budget_bytes());
  options.kv_disk_bytes = static_cast<int64_t>(order.kv_disk_bytes());
  options.kv_disk_directory = environment_.kv_disk_directory;
  options.max_step_tokens = order.max_step_tokens();
  if (order.previous().by_nccl() || order.next().by_nccl()) options.hidden_slots = kHiddenSlots;
  options.leaves_hidden = order.next().by_nccl();
  options.expert_budget_bytes = static_cast<int64_t>(order.expert_budget_bytes());
  options.experts = environment_.experts;
  options.expert_heat = environment_.expert_heat;
  options.model_fingerprint = order.model().fingerprint();
  options.routing = Record(order, config, spec);
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                           environment_.make_backend(config, options.max_step_tokens));
  if (!backend->memory().is_host() && options.expert_budget_bytes > 0) {
    CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<Backend> cpu, environment_.make_cpu());
    CARAVAN_RETURN_IF_ERROR(
        SplitExpertBudget(config, spec, environment_.card_ram_bytes, std::move(cpu), options));
  }
  // What it has no use for makes room first.
  options.held = std::make_shared<WeightParts>();
  for (const WeightPartId& id : PartsOf(config, spec, options.expert_budget_bytes == 0)) {
    if (const auto part = held_.find(id); part != held_.end()) options.held->insert(*part);
  }
  held_ = *options.held;
  options.held_experts = std::make_shared<HeldExperts>(std::exchange(held_experts_, {}));
  absl::StatusOr<std::unique_ptr<Stage>> stage =
      Stage::Create(config, spec, *source, std::move(backend), options, progress);
  if (!stage.ok()) {
    held_ = std::move(*options.held);
    held_experts_ = std::move(*options.held_experts);
  }
  return stage;
}

absl::StatusOr<std::unique_ptr<Stage>> Worker::TakeStage(const v1::LoadStage& order,
                                                         const std::stop_token& stop) {
  const bool fits = prepared_.has_value() &&
                    prepared_->order.plan_version() == order.plan_version() &&
                    prepared_->order.previous().by_nccl() == order.previous().by_nccl() &&
                    prepared_->order.next().by_nccl() == order.next().by_nccl();
  std::unique_ptr<Stage> stage;
  if (fits) {
    stage = std::move(prepared_->stage);
    prepared_.reset();
  } else {
    DropPrepared();
    CARAVAN_ASSIGN_OR_RETURN(stage, MakeStage(order, stop));
  }
  // Only now, as others add to theirs until their stages go.
  absl::StatusOr<KvArchive::Place> place = environment_.kv_archive(order.kv_archives());
  if (!place.ok()) {
    Keep(*stage);
    return place.status();
  }
  stage->OpenArchive(*std::move(place));
  return stage;
}

absl::StatusOr<std::shared_ptr<StepLoop>> Worker::TryLoad(const v1::LoadStage& order,
                                                          const std::stop_token& stop,
                                                          const TellFailure& tell_failure,
                                                          v1::StageReady& ready,
                                                          v1::HopEnd& unjoined) {
  CARAVAN_ASSIGN_OR_RETURN(HopLinks links, MakeLinks(order, stop, unjoined));
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<Stage> stage, TakeStage(order, stop));
  ready.set_plan_version(order.plan_version());
  ready.set_kv_blocks(
      static_cast<uint32_t>(std::min<int64_t>(stage->kv_cache().num_blocks(), UINT32_MAX)));
  ready.set_kv_blocks_on_disk(
      static_cast<uint32_t>(std::min<int64_t>(stage->kv_cache().blocks_on_disk(), UINT32_MAX)));
  ready.set_kv_block_tokens(static_cast<uint32_t>(stage->kv_cache().block_tokens()));
  ready.set_card_bytes(static_cast<uint64_t>(stage->card_bytes()));
  if (stage->kv_archive() != nullptr) {
    v1::KvArchive& archive = *ready.mutable_kv_archive();
    archive.set_capacity(static_cast<uint64_t>(stage->kv_archive()->capacity()));
    for (const KvBlockName& name : stage->kv_archive()->Names(kMostArchivedNames)) {
      absl::StrAppend(archive.mutable_names(), name.view());
    }
  }

  const auto on_broken = [tell_failure](const absl::Status& status) {
    tell_failure(Annotate(status, "the next hop is lost"), v1::HOP_END_UNSPECIFIED);
  };
  absl::StatusOr<std::unique_ptr<ActivationChannel>> next =
      environment_.open_next_hop(order, on_broken, stop);
  if (!next.ok()) {
    Keep(*stage);
    return next.status();
  }
  const auto on_card_lost = [this, tell_failure](const absl::Status& status) {
    tell_failure(Annotate(status, "the card is lost"), v1::HOP_END_UNSPECIFIED);
    environment_.on_card_lost(status);
  };
  // Once a stage, apart from what ends it: it goes on if nobody can take over.
  const auto on_data_lost =
      [tell = MakeTellFailure(order.plan_version())](const absl::Status& status) {
        tell(status, v1::HOP_END_UNSPECIFIED);
      };
  return std::make_shared<StepLoop>(order.plan_version(), std::move(stage), *std::move(next),
                                    on_broken, std::move(links), on_card_lost, on_data_lost);
}

std::shared_ptr<RoutingObserver> Worker::Record(const v1::LoadStage& order,
                                                const ModelConfig& config,
                                                const StageSpec& spec) const {
  if (environment_.record_routing.empty()) return nullptr;
  absl::StatusOr<std::unique_ptr<RoutingObserver>> routing =
      RecordStage(environment_.record_routing, order.model().fingerprint(), config, spec);
  if (routing.ok()) return *std::move(routing);
  LogWarning("routing_not_recorded", {{"why", routing.status().message()}});
  return nullptr;
}

Worker::TellFailure Worker::MakeTellFailure(uint64_t plan_version) const {
  const auto told = std::make_shared<std::atomic<bool>>(false);
  return [this, plan_version, told](const absl::Status& status, v1::HopEnd unjoined) {
    if (told->exchange(true)) return;
    LogWarning("stage_failed", {{"plan", plan_version}, {"error", status.message()}});
    v1::WorkerReport report;
    v1::StageFailure& failure = *report.mutable_failure();
    failure.set_plan_version(plan_version);
    failure.set_code(static_cast<int32_t>(status.code()));
    failure.set_message(absl::StrCat(environment_.name, ": ", status.message()));
    failure.set_unjoined(unjoined);
    environment_.report(std::move(report));
  };
}

}  // namespace caravan
