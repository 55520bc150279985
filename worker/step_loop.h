#ifndef CARAVAN_WORKER_STEP_LOOP_H_
#define CARAVAN_WORKER_STEP_LOOP_H_

// The thread that takes a worker's steps one by one: from the hop before, through the stage, to the
// hop after.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "base/bounded_queue.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "caravan/v1/pipeline.pb.h"
#include "cluster/activation_channel.h"
#include "worker/load_meter.h"
#include "worker/stage.h"

namespace caravan {

/// Lives as long as one plan. Receive is a StepReceiver and may be called by any thread.
class StepLoop {
 public:
  /// Steps that may wait here. The coordinator keeps about one a stage in flight, so they can all
  /// wait before the slowest one without blocking a link.
  static constexpr size_t kQueuedSteps = 64;

  /// `on_broken` is called at most once, by the loop's thread, when the next hop is lost; never
  /// once Stop has returned. It must not call Stop.
  StepLoop(uint64_t plan_version, std::unique_ptr<Stage> stage,
           std::unique_ptr<ActivationChannel> next,
           std::function<void(const absl::Status&)> on_broken);

  ~StepLoop();

  /// Drops the steps that wait, releases whoever waits in Receive, ends the link to the next hop
  /// and joins the thread. Idempotent; any thread.
  void Stop();

  uint64_t plan_version() const { return plan_version_; }

  /// What the stage has done since it was ready. Any thread.
  v1::WorkerLoad load() const;

  /// Takes a step in; waits while several are queued. Steps run in the order of their ids, whoever
  /// brings them.
  /// Errors: Aborted - of another plan; FailedPrecondition - step_id went back; Unavailable -
  ///         stopped, or the next hop is lost.
  absl::Status Receive(v1::Step step);

 private:
  void Run();

  const uint64_t plan_version_;
  const std::unique_ptr<Stage> stage_;             // used by thread_ alone, but for counters
  const std::unique_ptr<ActivationChannel> next_;  // own synchronisation
  const std::function<void(const absl::Status&)> on_broken_;

  BoundedQueue<v1::Step> queue_;  // own synchronisation
  LoadMeter meter_;               // own synchronisation

  Mutex intake_mu_;  // held while a step waits for room, so that no other overtakes it
  uint64_t last_step_id_ ABSL_GUARDED_BY(intake_mu_) = 0;

  NamedThread thread_;  // last: it uses all of the above
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_STEP_LOOP_H_
