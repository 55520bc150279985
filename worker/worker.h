#ifndef CARAVAN_WORKER_WORKER_H_
#define CARAVAN_WORKER_WORKER_H_

// What a worker does with the coordinator's orders: it holds at most one stage, loads it when told,
// runs the steps that reach it, and reports. Knows neither gRPC nor files: see WorkerSession.
//
//   no stage --LoadStage--> loading --StageReady--> running
//      ^                      |  StageFailure          | DropStage, LoadStage, lost next hop
//      '----------------------'------------------------'

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/activation_channel.h"
#include "kernels/backend.h"
#include "model/tensor_source.h"
#include "worker/stage_weights.h"
#include "worker/step_loop.h"

namespace caravan {

/// Handle and Drop are called by one thread; Receive by any.
class Worker {
 public:
  /// The outside world. Everything but `report` is called by the loading thread.
  struct Environment {
    std::string name;  // for errors and logs
    std::function<std::unique_ptr<Backend>()> make_backend;
    std::function<absl::StatusOr<std::unique_ptr<TensorSource>>(const v1::ModelReference&)>
        open_model;
    /// `on_broken` as in StepLoop, for a link that breaks while nothing is sent.
    std::function<absl::StatusOr<std::unique_ptr<ActivationChannel>>(
        const v1::LoadStage& order, std::function<void(absl::Status)> on_broken)>
        open_next_hop;
    /// Progress of loading, for people.
    std::function<void(int64_t loaded_bytes, int64_t total_bytes)> show_progress;
    /// Sends a report (without incarnation) to the coordinator. Called by any thread; must not
    /// block.
    std::function<void(v1::WorkerReport)> report;
  };

  explicit Worker(Environment environment);
  ~Worker();

  /// LoadStage replaces the present stage and loads the new one on a thread of its own; DropStage
  /// drops it. Other orders are the session's.
  void Handle(const v1::WorkerOrder& order);

  /// Stops loading, drops the stage.
  void Drop();

  /// StepReceiver for the present stage.
  /// Errors: Aborted - there is no stage of the step's plan; else as StepLoop::Receive.
  absl::Status Receive(v1::Step step);

 private:
  void Load(const v1::LoadStage& order);
  absl::StatusOr<std::shared_ptr<StepLoop>> TryLoad(const v1::LoadStage& order,
                                                    v1::StageReady& ready);
  void ReportFailure(uint64_t plan_version, const absl::Status& status);

  const Environment environment_;
  std::thread loader_;  // joined by Handle and Drop
  std::atomic<bool> stop_loading_{false};

  Mutex mu_;
  std::shared_ptr<StepLoop> loop_ ABSL_GUARDED_BY(mu_);
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_WORKER_H_
