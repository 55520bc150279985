#ifndef CARAVAN_WORKER_WORKER_H_
#define CARAVAN_WORKER_WORKER_H_

// What a worker does with the coordinator's orders: it holds at most one stage, loads it when told,
// runs the steps that reach it, and reports. Knows neither gRPC nor files: see WorkerSession.
//
//   no stage --LoadStage--> loading --StageReady--> running
//      ^                      |  StageFailure          | DropStage, LoadStage, lost next hop
//      '----------------------'------------------------'
//
// Without a stage or running one it may prepare the next (PrepareStage). Of a stage that goes, the
// weights and the slots of experts stay that lie in the host's memory, until the next one has taken
// what it has in common with it.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/bounded_queue.h"
#include "base/dtype.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/activation_channel.h"
#include "cluster/sender_gate.h"
#include "kernels/backend.h"
#include "model/model_config.h"
#include "model/stage_spec.h"
#include "model/tensor_source.h"
#include "worker/card_link.h"
#include "worker/experts/expert_store.h"
#include "worker/experts/held_experts.h"
#include "worker/experts/routing_observer.h"
#include "worker/stage.h"
#include "worker/stage_weights.h"
#include "worker/step_loop.h"
#include "worker/weight_part.h"

namespace caravan {

/// Handle and Drop are called by one thread; Receive and load by any.
class Worker {
 public:
  /// The outside world. Everything but `report` is called by the loading thread. What opens
  /// something gives up soon after `stop` is requested.
  struct Environment {
    std::string name;               // for errors and logs
    DType kv_dtype = DType::kF32;   // of the stages' KV caches
    std::string kv_disk_directory;  // as Stage::Options
    /// Where full KV blocks of a stage outlive it. Also called by the thread of Handle.
    std::function<absl::StatusOr<KvArchive::Place>(const v1::KvArchives& archives)> kv_archive =
        [](const v1::KvArchives&) { return KvArchive::Place(); };
    ExpertStore::Options experts;            // of the stages' experts on disk
    std::optional<std::string> expert_heat;  // as Stage::Options
    // Routing is recorded in files of this prefix (RecordStage); empty: it is not.
    std::string record_routing;
    /// As ComputeDevice::MakeBackend.
    std::function<absl::StatusOr<std::unique_ptr<Backend>>(const ModelConfig& config,
                                                           int64_t max_rows)>
        make_backend;
    // Where those compute on a card: the host's memory for experts that it has no room for, with
    // all that a stage computes with there, and what makes the CPU's backends.
    int64_t card_ram_bytes = 0;
    std::function<absl::StatusOr<std::unique_ptr<Backend>>()> make_cpu;
    /// The source's reads heed `stop` too. A pack on this machine where the order leaves experts
    /// there (expert_budget_bytes > 0). Files that it has to fetch first count as progress of
    /// loading: `progress` is told how many bytes of those and of what is loaded then are done; its
    /// answer is LoadProgress's.
    /// Errors: ResourceExhausted - there is no room for its files while the present stage's are
    ///         kept; others - the stage cannot be had.
    std::function<absl::StatusOr<std::unique_ptr<TensorSource>>(
        const v1::LoadStage& order, const LoadProgress& progress, std::stop_token stop)>
        open_model;
    // For hops that the coordinator plans by NCCL; null: there are none. Where it is required, no
    // stage is loaded that has another hop to a worker.
    std::shared_ptr<const CardTransport> card_transport;
    bool requires_card_transport = false;
    /// `on_broken` as in StepLoop, for a link that breaks while nothing is sent.
    std::function<absl::StatusOr<std::unique_ptr<ActivationChannel>>(
        const v1::LoadStage& order, std::function<void(absl::Status)> on_broken,
        std::stop_token stop)>
        open_next_hop;
    /// As ComputeDevice::Check: asked when a stage could not be loaded of an error that may be the
    /// card's.
    std::function<absl::Status()> check_device = [] { return absl::OkStatus(); };
    /// A stage's card failed for good: no stage of this process can compute on it. Its failure was
    /// reported. Called once a stage, by its thread or the loading one; must not block.
    std::function<void(const absl::Status& why)> on_card_lost = [](const absl::Status&) {};
    /// Progress of loading, for people.
    std::function<void(int64_t loaded_bytes, int64_t total_bytes)> show_progress;
    /// Sends a report (without incarnation) to the coordinator. Called by any thread; must not
    /// block.
    std::function<void(v1::WorkerReport)> report;
  };

  explicit Worker(Environment environment);
  ~Worker();

  /// LoadStage replaces the present stage and loads the new one on a thread of its own, which
  /// JoinHop lets go on; PrepareStage has such a thread prepare one; DropStage drops either;
  /// SetKvReplica is carried out at once. Other orders are the session's.
  void Handle(const v1::WorkerOrder& order);

  /// Stops loading, drops the stage and all that is kept for others; whoever waits in Receive
  /// returns.
  void Drop();

  /// StepReceiver for the present stage.
  /// Errors: Aborted - there is no stage of the step's plan; else as StepLoop::Receive.
  absl::Status Receive(v1::Step step);

  /// Whose steps the present stage takes: the session's to ask.
  const SenderGate& sender_gate() const { return sender_gate_; }

  /// Whether a stage runs. Any thread.
  bool has_stage() const;

  /// Of the present stage's archive, without room_bytes; empty where there is none. Any thread.
  v1::KvArchiveNews kv_archive_news() const;

  /// What all stages together have done.
  v1::WorkerLoad load() const;

 private:
  /// Reports that a stage cannot go on, once: a lost link can show in several places. `unjoined`:
  /// as in StageFailure.
  using TellFailure = std::function<void(const absl::Status&, v1::HopEnd unjoined)>;

  /// A stage that waits for its plan.
  struct Prepared {
    v1::LoadStage order;  // what it was made by
    std::unique_ptr<Stage> stage;
  };

  /// Has `body` run on the loading thread. REQUIRES: there is none.
  void StartLoading(std::function<void(const std::stop_token& stop)> body);
  /// Stops it, if there is one.
  void StopLoading();
  /// Stops the loop, and keeps what may be of use to the next stage.
  void DropStage();
  void DropPrepared();
  void SetReplica(const v1::SetKvReplica& order);
  /// Keeps that of a stage that goes, and was not running.
  void Keep(Stage& stage);

  // On the loading thread.
  void Load(const v1::LoadStage& order, const std::stop_token& stop);
  void Prepare(const v1::PrepareStage& order, bool beside_another, const std::stop_token& stop);
  absl::Status PrepareBeside(const v1::PrepareStage& order, const std::stop_token& stop);
  absl::StatusOr<HopLinks> MakeLinks(const v1::LoadStage& order, const std::stop_token& stop,
                                     v1::HopEnd& unjoined);
  /// Without an archive.
  absl::StatusOr<std::unique_ptr<Stage>> MakeStage(const v1::LoadStage& order,
                                                   const std::stop_token& stop);
  /// The prepared one if it is for this order, else a new one.
  absl::StatusOr<std::unique_ptr<Stage>> TakeStage(const v1::LoadStage& order,
                                                   const std::stop_token& stop);
  /// `unjoined`: with an error, as JoinHops.
  absl::StatusOr<std::shared_ptr<StepLoop>> TryLoad(const v1::LoadStage& order,
                                                    const std::stop_token& stop,
                                                    const TellFailure& tell_failure,
                                                    v1::StageReady& ready, v1::HopEnd& unjoined);
  /// environment_.open_model. Files that it fetches are reported as part of loading, and what is
  /// loaded then is to be reported by `progress`.
  absl::StatusOr<std::unique_ptr<TensorSource>> OpenModel(const v1::LoadStage& order,
                                                          const std::stop_token& stop,
                                                          LoadProgress& progress) const;
  LoadProgress ReportProgress(uint64_t plan_version, const std::stop_token& stop) const;
  /// Tells why no stage could be made.
  void ReportFailure(const absl::Status& why, v1::HopEnd unjoined, const TellFailure& tell_failure);
  TellFailure MakeTellFailure(uint64_t plan_version) const;
  /// Null, with a warning, where the stage's routing cannot be recorded: it serves all the same.
  std::shared_ptr<RoutingObserver> Record(const v1::LoadStage& order, const ModelConfig& config,
                                          const StageSpec& spec) const;

  const Environment environment_;
  // Of the thread that calls Handle and Drop.
  std::stop_source stop_loading_;                        // one a load, as is:
  std::optional<BoundedQueue<v1::JoinHop>> invitation_;  // from Handle to the loading thread
  std::optional<NamedThread> loader_;
  uint64_t preparing_ = 0;  // the plan of the last PrepareStage that came to nothing yet; 0: none

  // Of the loading thread while there is one, else of the former.
  std::optional<Prepared> prepared_;
  WeightParts held_;          // of stages that were, or are to come; shared with those that are
  HeldExperts held_experts_;  // of the last stage that was, while there is none

  SenderGate sender_gate_;  // own synchronisation

  mutable Mutex mu_;
  std::shared_ptr<StepLoop> loop_ ABSL_GUARDED_BY(mu_);
  v1::WorkerLoad past_load_ ABSL_GUARDED_BY(mu_);  // of stages that were dropped
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_WORKER_H_
