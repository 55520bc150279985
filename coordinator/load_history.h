#ifndef CARAVAN_COORDINATOR_LOAD_HISTORY_H_
#define CARAVAN_COORDINATOR_LOAD_HISTORY_H_

// How the last minutes went, for people who look at the dashboard: a sample every few seconds of
// what was done and what waited. Of fixed size, in memory only; what should last is Prometheus'
// business.

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "caravan/v1/cluster.pb.h"
#include "coordinator/pipeline_observer.h"
#include "coordinator/pipeline_stats.h"

namespace caravan {

/// Thread-safe.
class LoadHistory final : public PipelineObserver {
 public:
  struct Options {
    absl::Duration interval = absl::Seconds(2);  // between samples
    size_t num_samples = 150;                    // that are kept
    // The percentiles of a sample are of the first tokens that came within this time before it.
    absl::Duration first_token_window = absl::Seconds(30);
    const Clock* clock = &SteadyClock();
  };

  struct Sample {
    absl::Duration at;  // on the clock
    double generated_tokens_per_s = 0;
    double prompt_tokens_per_s = 0;
    int64_t queued_jobs = 0;
    int64_t running_jobs = 0;
    // Of interactive jobs; nullopt: none had its first token within the window.
    std::optional<absl::Duration> first_token_p50;
    std::optional<absl::Duration> first_token_p99;
    // By worker_id, in [0, 1]: the share of the time between two heartbeats, one before the last
    // sample and one before this, in which the worker had work. Only of workers that had a stage.
    std::map<uint32_t, double> busy_shares;
  };

  explicit LoadHistory(Options options);

  /// Whether the interval has passed since the last sample.
  bool Due() const;
  /// Takes a sample of what there is now. The first call only begins the first interval.
  void Take(const PipelineStats& stats, const v1::GetStatusResponse& cluster);

  std::vector<Sample> Samples() const;  // oldest first
  /// Of the newest sample.
  std::map<uint32_t, double> BusyShares() const;
  /// How far back the samples may reach.
  absl::Duration window() const {
    return options_.interval * static_cast<int64_t>(options_.num_samples);
  }

  void OnFirstToken(JobPriority priority, absl::Duration since_submit) override;
  void OnTokenGap(JobPriority /*priority*/, absl::Duration /*gap*/) override {}
  void OnJobEnded(JobPriority /*priority*/, JobOutcome /*outcome*/,
                  absl::Duration /*since_submit*/) override {}
  void OnStepReturned(int64_t /*rows*/, absl::Duration /*round_trip*/) override {}

 private:
  struct FirstToken {
    absl::Duration at;
    absl::Duration since_submit;
  };
  /// What the next sample is the difference to.
  struct Baseline {
    absl::Duration at;
    int64_t generated_tokens = 0;
    int64_t prompt_tokens = 0;
    std::map<uint32_t, v1::WorkerLoad> loads;  // by worker_id
  };

  void FillInPercentiles(Sample& sample) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Options options_;
  mutable Mutex mu_;
  std::optional<Baseline> baseline_ ABSL_GUARDED_BY(mu_);
  std::deque<Sample> samples_ ABSL_GUARDED_BY(mu_);
  std::deque<FirstToken> first_tokens_ ABSL_GUARDED_BY(mu_);  // oldest first
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_LOAD_HISTORY_H_
