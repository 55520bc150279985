#ifndef CARAVAN_COORDINATOR_HTTP_FRONT_H_
#define CARAVAN_COORDINATOR_HTTP_FRONT_H_

// All that the coordinator serves over HTTP, behind one port: OpenAI's API, the dashboard, metrics.

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "caravan/v1/cluster.pb.h"
#include "coordinator/batch/batch_book.h"
#include "coordinator/dashboard_service.h"
#include "coordinator/http/http_server.h"
#include "coordinator/load_history.h"
#include "coordinator/metrics.h"
#include "coordinator/openai/batch_service.h"
#include "coordinator/openai/generation_request.h"
#include "coordinator/openai/openai_service.h"
#include "coordinator/pipeline_driver.h"
#include "coordinator/pipeline_observers.h"

namespace caravan {

/// Observes the pipeline from the beginning, serves it from Start until Stop. Thread-safe.
class HttpFront {
 public:
  struct Options {
    ServedModel model;
    std::string listen;        // HOST:PORT; port 0: any free one
    std::string api_key_file;  // empty: no keys, and loopback only
    BatchBook* batches;        // outlives this
    /// As DashboardService's; called from Start until Stop.
    std::function<std::optional<absl::Time>()> certificate_not_after = nullptr;
  };

  explicit HttpFront(Options options);

  /// What the driver is to tell; lives as long as this.
  PipelineObserver* observer() { return &observers_; }

  /// Borrows `driver` until Stop has returned.
  /// Errors: as ApiKeys::Load and HttpServer::Start. Call it once.
  absl::Status Start(PipelineDriver* driver);

  /// HOST:PORT that is listened on. REQUIRES: started.
  std::string address() const { return server_->address(); }
  bool has_keys() const { return !options_.api_key_file.empty(); }

  /// How the cluster is now, for those who ask until the next call. REQUIRES: started.
  void Update(v1::GetStatusResponse cluster) { dashboard_->Update(std::move(cluster)); }

  /// Answers under way have `grace` to end. Idempotent.
  void Stop(absl::Duration grace);

 private:
  const Options options_;
  Metrics metrics_;
  LoadHistory history_;
  PipelineObservers observers_;
  std::unique_ptr<OpenAiService> openai_;
  std::unique_ptr<BatchService> batches_;
  std::unique_ptr<DashboardService> dashboard_;
  std::unique_ptr<HttpServer> server_;  // first to go: its handlers call what is above
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_FRONT_H_
