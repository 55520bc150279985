#ifndef CARAVAN_COORDINATOR_PIPELINE_SIMULATION_H_
#define CARAVAN_COORDINATOR_PIPELINE_SIMULATION_H_

// What jobs meet in a pipeline, by simulating it: the real Scheduler decides what steps carry, and
// stages and links take the time that somebody foretells (cluster/step_time.h). A day of jobs takes
// seconds to minutes.
//
// Discrete events: jobs come, steps come home. Between, a step's way is settled when it is sent, as
// nobody overtakes: stage and link take steps in order, one at a time, a stage computes while its
// link carries the step before, and a message is on its way for the link's latency besides.

#include <cstdint>
#include <functional>
#include <vector>

#include "coordinator/job.h"
#include "coordinator/scheduler.h"

namespace caravan {

/// What the time of a stage depends on.
struct StepShape {
  int64_t rows = 0;
  int64_t sampled_rows = 0;     // of these, those that a token is sampled after
  int64_t attended_tokens = 0;  // that a row looks back on, in the mean
};

/// Seconds are simulated ones.
struct SimulatedPipeline {
  Scheduler::Options scheduling;  // num_stages and the KV cache of all of them; no drafts
  /// Of `stage` for a step.
  std::function<double(int stage, const StepShape& step)> stage_seconds;
  /// In which the link behind `stage` carries nothing else. Not asked for the last stage.
  std::function<double(int stage, int64_t rows)> send_seconds;
  /// Until what has left `stage` is at the next one, or home.
  std::function<double(int stage)> latency_seconds;
};

struct SimulatedJob {
  double arrival_seconds = 0;  // with `after`: so long after that one's end
  int after = -1;              // the number of an earlier job; -1: none
  int64_t prompt_tokens = 1;
  int64_t reply_tokens = 1;
  JobPriority priority = JobPriority::kInteractive;
};

struct SimulatedOutcome {
  double arrival_seconds = 0;
  double first_token_seconds = -1;  // when it came; -1: it did not
  double end_seconds = -1;          // the same of the last one
  bool refused = false;             // it can never fit the KV cache
};

struct Simulation {
  std::vector<SimulatedOutcome> jobs;  // in the order of the jobs
  double seconds = 0;                  // of the last event
  int64_t generated_tokens = 0;
  Scheduler::Counters counters;
  std::vector<double> busy_seconds;  // of each stage
  int64_t most_waiting = 0;          // jobs that had no blocks yet
};

/// Until all jobs have ended, or `until_seconds`.
/// REQUIRES: jobs of at least one token each way, `after` < their own number, times >= 0.
Simulation Simulate(const SimulatedPipeline& pipeline, const std::vector<SimulatedJob>& jobs,
                    double until_seconds);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_PIPELINE_SIMULATION_H_
