#ifndef CARAVAN_COORDINATOR_DASHBOARD_SERVICE_H_
#define CARAVAN_COORDINATOR_DASHBOARD_SERVICE_H_

// What people and Prometheus look at: the dashboard's page at /, its data, its cancelling of jobs,
// and /metrics. Chat goes through the OpenAI endpoints, as everybody's does.

#include <functional>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "caravan/v1/cluster.pb.h"
#include "coordinator/http/router.h"
#include "coordinator/load_history.h"
#include "coordinator/metrics.h"
#include "coordinator/pipeline_driver.h"

namespace caravan {

/// Thread-safe. Borrows everything.
class DashboardService {
 public:
  struct Options {
    std::string model;  // its id, as /v1/models says it
    PipelineDriver* driver = nullptr;
    LoadHistory* history = nullptr;
    const Metrics* metrics = nullptr;
    const Clock* clock = &SteadyClock();  // the history's
    /// Ends a job. Errors: NotFound - no such job is queued or running.
    std::function<absl::Status(uint64_t job_id)> cancel;
    /// When the coordinator's certificate ends; nullopt: it has none. Null: the same.
    std::function<std::optional<absl::Time>()> certificate_not_after = nullptr;
  };
  explicit DashboardService(Options options) : options_(std::move(options)) {}

  /// Adds the routes. The service must outlive the router. The page is open to everyone: what it
  /// shows is not.
  void AddRoutes(Router& router);

  /// How the cluster is now, for whoever asks until the next call; takes a sample of it when the
  /// history is due. Handlers must not wait for the control loop, so it tells us.
  void Update(v1::GetStatusResponse cluster);

 private:
  HttpResponse Data() const;
  HttpResponse RenderMetrics() const;
  HttpResponse CancelJob(const HttpRequest& request) const;
  v1::GetStatusResponse Cluster() const;

  const Options options_;
  mutable Mutex mu_;
  v1::GetStatusResponse cluster_ ABSL_GUARDED_BY(mu_);
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_DASHBOARD_SERVICE_H_
