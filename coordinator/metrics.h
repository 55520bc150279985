#ifndef CARAVAN_COORDINATOR_METRICS_H_
#define CARAVAN_COORDINATOR_METRICS_H_

// What Prometheus reads from /metrics. docs/metrics.md has a row for each metric. What others count
// already (PipelineStats, the workers' loads) is taken from them when the page is asked for; only
// distributions and the HTTP front's counters live here.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "caravan/v1/cluster.pb.h"
#include "coordinator/http/http_observer.h"
#include "coordinator/pipeline_observer.h"
#include "coordinator/pipeline_stats.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/metric_family.h"
#include "prometheus/registry.h"

namespace caravan {

/// Thread-safe.
class Metrics final : public PipelineObserver, public HttpObserver {
 public:
  /// What goes with Render's text.
  static constexpr char kContentType[] = "text/plain; version=0.0.4; charset=utf-8";

  /// What is known elsewhere, at one moment.
  struct Snapshot {
    PipelineStats pipeline;
    v1::GetStatusResponse cluster;
    std::map<uint32_t, double> busy_shares;  // by worker_id, in [0, 1]; LoadHistory::BusyShares
    std::optional<absl::Duration> certificate_expires = {};  // nullopt: there is no certificate
  };

  Metrics();

  void OnFirstToken(JobPriority priority, absl::Duration since_submit) override;
  void OnTokenGap(JobPriority priority, absl::Duration gap) override;
  void OnJobEnded(JobPriority priority, JobOutcome outcome, absl::Duration since_submit) override;
  void OnStepReturned(int64_t rows, absl::Duration round_trip) override;

  void OnConnectionOpened() override { http_connections_->Increment(); }
  void OnConnectionClosed() override { http_connections_->Decrement(); }
  void OnAnswered(absl::string_view route, int status) override;

  /// Everything.
  std::vector<prometheus::MetricFamily> Collect(const Snapshot& snapshot) const;

  /// Collect, in Prometheus' text format.
  std::string Render(const Snapshot& snapshot) const;

 private:
  using HistogramFamily = prometheus::Family<prometheus::Histogram>;
  using CounterFamily = prometheus::Family<prometheus::Counter>;

  /// One histogram for each priority.
  struct ByPriority {
    prometheus::Histogram* interactive;
    prometheus::Histogram* bulk;
    prometheus::Histogram& Of(JobPriority priority) const {
      return priority == JobPriority::kBulk ? *bulk : *interactive;
    }
  };
  ByPriority AddByPriority(const std::string& name, const std::string& help,
                           const prometheus::Histogram::BucketBoundaries& buckets);
  prometheus::Histogram* AddHistogram(const std::string& name, const std::string& help,
                                      const prometheus::Histogram::BucketBoundaries& buckets);

  prometheus::Registry registry_;  // owns what the pointers below point to
  const ByPriority time_to_first_token_;
  const ByPriority time_between_tokens_;
  const ByPriority job_duration_;
  prometheus::Histogram* const step_rows_;
  prometheus::Histogram* const step_round_trip_;
  CounterFamily* const jobs_;
  CounterFamily* const http_requests_;
  prometheus::Gauge* const http_connections_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_METRICS_H_
