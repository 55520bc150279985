#ifndef CARAVAN_WORKER_STEP_LOOP_H_
#define CARAVAN_WORKER_STEP_LOOP_H_

// The thread that takes a worker's steps one by one: from the hop before, through the stage, to the
// hop after.

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "absl/status/status.h"
#include "base/bounded_queue.h"
#include "caravan/v1/pipeline.pb.h"
#include "cluster/activation_channel.h"
#include "worker/stage.h"

namespace caravan {

/// Lives as long as one plan. Receive is a StepReceiver and may be called by any thread.
class StepLoop {
 public:
  /// `on_broken` is called at most once, by the loop's thread, when the next hop is lost.
  StepLoop(uint64_t plan_version, std::unique_ptr<Stage> stage,
           std::unique_ptr<ActivationChannel> next,
           std::function<void(const absl::Status&)> on_broken);

  /// Drops the steps that wait, ends the link to the next hop and joins the thread.
  ~StepLoop();

  uint64_t plan_version() const { return plan_version_; }

  /// Takes a step in; waits while several are queued.
  /// Errors: Aborted - of another plan; FailedPrecondition - step_id went back; Unavailable -
  /// ending.
  absl::Status Receive(v1::Step step);

 private:
  void Run();

  const uint64_t plan_version_;
  const std::unique_ptr<Stage> stage_;             // used by thread_ alone
  const std::unique_ptr<ActivationChannel> next_;  // own synchronisation
  const std::function<void(const absl::Status&)> on_broken_;

  Mutex mu_;
  uint64_t last_step_id_ ABSL_GUARDED_BY(mu_) = 0;

  BoundedQueue<v1::Step> queue_;  // own synchronisation
  std::thread thread_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_STEP_LOOP_H_
