#ifndef CARAVAN_COORDINATOR_PIPELINE_OBSERVERS_H_
#define CARAVAN_COORDINATOR_PIPELINE_OBSERVERS_H_

// Several observers where one is asked for.

#include <cstdint>
#include <utility>
#include <vector>

#include "coordinator/pipeline_observer.h"

namespace caravan {

/// As thread-safe as its observers, which it borrows. They hear everything in the given order.
class PipelineObservers final : public PipelineObserver {
 public:
  explicit PipelineObservers(std::vector<PipelineObserver*> observers)
      : observers_(std::move(observers)) {}

  void OnFirstToken(JobPriority priority, absl::Duration since_submit) override {
    for (PipelineObserver* each : observers_) each->OnFirstToken(priority, since_submit);
  }
  void OnTokenGap(JobPriority priority, absl::Duration gap) override {
    for (PipelineObserver* each : observers_) each->OnTokenGap(priority, gap);
  }
  void OnJobEnded(JobPriority priority, JobOutcome outcome, absl::Duration since_submit) override {
    for (PipelineObserver* each : observers_) each->OnJobEnded(priority, outcome, since_submit);
  }
  void OnStepReturned(int64_t rows, absl::Duration round_trip) override {
    for (PipelineObserver* each : observers_) each->OnStepReturned(rows, round_trip);
  }

 private:
  const std::vector<PipelineObserver*> observers_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_PIPELINE_OBSERVERS_H_
