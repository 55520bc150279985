#include "coordinator/http_front.h"

#include <optional>
#include <utility>

#include "base/status_macros.h"
#include "coordinator/http/api_keys.h"
#include "coordinator/http/router.h"

namespace caravan {

HttpFront::HttpFront(Options options)
    : options_(std::move(options)),
      history_(LoadHistory::Options{}),
      observers_({&metrics_, &history_}) {}

absl::Status HttpFront::Start(PipelineDriver* driver) {
  std::optional<ApiKeys> keys;
  if (has_keys()) {
    CARAVAN_ASSIGN_OR_RETURN(keys, ApiKeys::Load(options_.api_key_file));
  }
  OpenAiService::Options openai;
  openai.model = options_.model;
  openai.submit = [driver](JobSpec spec) { return driver->Submit(std::move(spec)); };
  openai.check_serving = [driver] { return driver->CheckServing(); };
  openai_ = std::make_unique<OpenAiService>(std::move(openai));

  DashboardService::Options dashboard;
  dashboard.model = options_.model.name;
  dashboard.driver = driver;
  dashboard.history = &history_;
  dashboard.metrics = &metrics_;
  dashboard.certificate_not_after = options_.certificate_not_after;
  dashboard.cancel = [driver](uint64_t job_id) { return driver->Cancel(job_id); };
  dashboard_ = std::make_unique<DashboardService>(std::move(dashboard));

  batches_ = std::make_unique<BatchService>(options_.batches);

  Router router;
  openai_->AddRoutes(router);
  batches_->AddRoutes(router);
  dashboard_->AddRoutes(router);
  HttpServer::Options server;
  server.listen = options_.listen;
  server.keys = std::move(keys);
  server.observer = &metrics_;
  CARAVAN_ASSIGN_OR_RETURN(server_, HttpServer::Start(std::move(server), std::move(router)));
  return absl::OkStatus();
}

void HttpFront::Stop(absl::Duration grace) {
  if (server_ == nullptr) return;
  server_->Stop(grace);
  openai_->Stop();
  batches_->Stop();
}

}  // namespace caravan
