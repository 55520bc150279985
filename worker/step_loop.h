#ifndef CARAVAN_WORKER_STEP_LOOP_H_
#define CARAVAN_WORKER_STEP_LOOP_H_

// The thread that takes a worker's steps one by one: from the hop before, through the stage, to the
// hop after.
//
// Where activations come by a link of their own, whoever brings the step waits for them; where they
// go by one, a thread of its own sends them while the next step is computed. A step is told to the
// next hop before its activations are sent, so the n-th step that says so meets the n-th message.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/bounded_queue.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "caravan/v1/pipeline.pb.h"
#include "cluster/activation_channel.h"
#include "worker/hop_links.h"
#include "worker/load_meter.h"
#include "worker/stage.h"

namespace caravan {

/// Lives as long as one plan. Receive is a StepReceiver and may be called by any thread.
class StepLoop {
 public:
  /// Steps that may wait here. The coordinator keeps about one a stage in flight, so they can all
  /// wait before the slowest one without blocking a link.
  static constexpr size_t kQueuedSteps = 64;

  /// `on_broken` is called at most once, by a thread of the loop's, when the next hop is lost, and
  /// so is `on_card_lost` (null: nobody asks) when Stage::card_is_lost, and `on_data_lost` (the
  /// same) with each step that the stage fails with DataLoss; never once Stop has returned. They
  /// must not call Stop. With links the stage has several slots, and leaves hidden
  /// states in them if there is one to the next hop.
  StepLoop(uint64_t plan_version, std::unique_ptr<Stage> stage,
           std::unique_ptr<ActivationChannel> next,
           std::function<void(const absl::Status&)> on_broken, HopLinks links = {},
           std::function<void(const absl::Status&)> on_card_lost = nullptr,
           std::function<void(const absl::Status&)> on_data_lost = nullptr);

  ~StepLoop();

  /// Drops the steps that wait, releases whoever waits in Receive, ends the links and the channel
  /// to the next hop and joins the threads. Idempotent; any thread. Waits for what the stage is at:
  /// where a disk hangs that a step reads from, or that its archive of KV blocks is written to, for
  /// as long as that hangs.
  void Stop();

  uint64_t plan_version() const { return plan_version_; }

  /// StageWeights::held of the stage's. Any thread.
  WeightParts held_weights() const { return stage_->weights().held(); }

  /// As Stage::SetReplica.
  void SetReplica(const KvArchive::Place& place) { stage_->SetReplica(place); }

  /// Of the stage's archive, without room_bytes; empty where it has none. Any thread.
  v1::KvArchiveNews kv_archive_news() const;

  /// Stage::ReleaseExperts. REQUIRES: Stop has returned; nobody asks for load() any more.
  HeldExperts ReleaseExperts() { return stage_->ReleaseExperts(); }

  /// What the stage has done since it was ready. Any thread.
  v1::WorkerLoad load() const;

  /// Takes a step in; waits while several are queued, and for its activations where they come by
  /// the link. Steps run in the order of their ids, whoever brings them.
  /// Errors: Aborted - of another plan; FailedPrecondition - step_id went back; InvalidArgument -
  ///         activations by a link that is not there, of no row or of too many; Unavailable -
  ///         stopped, or the next hop is lost; the link's.
  absl::Status Receive(v1::Step step);

 private:
  void Run();
  /// Gives the step a slot, and its activations where they come by the link.
  absl::StatusOr<HopStep> TakeIn(v1::Step step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(intake_mu_);
  absl::Status Send(HopStep done);
  /// What the sending thread does.
  void SendByLink();
  /// Ends the intake and, unless the loop is ending anyway, tells why.
  void Break(const absl::Status& why, const std::function<void(const absl::Status&)>& tell);

  const uint64_t plan_version_;
  const std::unique_ptr<Stage> stage_;  // used by thread_ alone, but for counters and slots
  const std::unique_ptr<ActivationChannel> next_;  // own synchronisation
  const std::function<void(const absl::Status&)> on_broken_;
  const std::function<void(const absl::Status&)> on_card_lost_;  // null: nobody asks
  const std::function<void(const absl::Status&)> on_data_lost_;  // the same
  const HopLinks links_;                                         // own synchronisation

  BoundedQueue<HopStep> queue_;     // own synchronisation
  BoundedQueue<HopStep> outgoing_;  // the same; used with a link to the next hop
  LoadMeter meter_;                 // own synchronisation

  // Held while a step waits for room and for its activations, so that no other overtakes it.
  Mutex intake_mu_;
  uint64_t last_step_id_ ABSL_GUARDED_BY(intake_mu_) = 0;

  // Last: they use all of the above.
  NamedThread thread_;
  std::optional<NamedThread> sender_;  // with a link to the next hop
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_STEP_LOOP_H_
