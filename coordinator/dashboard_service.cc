#include "coordinator/dashboard_service.h"

#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "coordinator/dashboard_files.h"
#include "coordinator/dashboard_json.h"
#include "coordinator/http/http_error.h"

namespace caravan {
namespace {

// The page needs nothing from elsewhere, and nobody may put it into a page of theirs.
constexpr char kContentSecurityPolicy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

std::string ContentType(absl::string_view name) {
  if (absl::EndsWith(name, ".html")) return "text/html; charset=utf-8";
  if (absl::EndsWith(name, ".css")) return "text/css; charset=utf-8";
  if (absl::EndsWith(name, ".js")) return "text/javascript; charset=utf-8";
  return "image/svg+xml";
}

/// With `response` as it is now for whoever asks.
HttpHandler Answering(HttpResponse response) {
  return [response = std::move(response)](const HttpRequest& /*request*/,
                                          const std::shared_ptr<Responder>& responder) {
    responder->Send(response);
  };
}

}  // namespace

void DashboardService::AddRoutes(Router& router) {
  RouteOptions open;
  open.open = true;
  for (const DashboardFile& file : DashboardFiles()) {
    HttpResponse response;
    response.content_type = ContentType(file.name);
    response.body = std::string(file.contents);
    response.headers = {{"Content-Security-Policy", kContentSecurityPolicy},
                        {"X-Content-Type-Options", "nosniff"},
                        {"Referrer-Policy", "no-referrer"},
                        // Another version may be served here tomorrow.
                        {"Cache-Control", "no-cache"}};
    const std::string path =
        file.name == "index.html" ? "/" : absl::StrCat("/dashboard/", file.name);
    router.Handle("GET", path, Answering(std::move(response)), open);
  }
  router.Handle("GET", "/dashboard/data",
                [this](const HttpRequest& /*request*/,
                       const std::shared_ptr<Responder>& responder) { responder->Send(Data()); });
  router.Handle("DELETE", "/dashboard/jobs/{}",
                [this](const HttpRequest& request, const std::shared_ptr<Responder>& responder) {
                  responder->Send(CancelJob(request));
                });
  router.Handle(
      "GET", "/metrics",
      [this](const HttpRequest& /*request*/, const std::shared_ptr<Responder>& responder) {
        responder->Send(RenderMetrics());
      });
}

void DashboardService::Update(v1::GetStatusResponse cluster) {
  if (options_.history->Due()) options_.history->Take(options_.driver->stats(), cluster);
  MutexLock lock(&mu_);
  cluster_ = std::move(cluster);
}

v1::GetStatusResponse DashboardService::Cluster() const {
  MutexLock lock(&mu_);
  return cluster_;
}

HttpResponse DashboardService::Data() const {
  DashboardInputs inputs;
  inputs.model = options_.model;
  inputs.cluster = Cluster();
  inputs.pipeline = options_.driver->stats();
  inputs.jobs = options_.driver->List();
  inputs.history = options_.history->Samples();
  inputs.window = options_.history->window();
  inputs.now = options_.clock->Now();
  HttpResponse response;
  response.body = JsonText(DashboardJson(inputs));
  response.headers = {{"Cache-Control", "no-store"}};
  return response;
}

HttpResponse DashboardService::RenderMetrics() const {
  HttpResponse response;
  response.content_type = Metrics::kContentType;
  Metrics::Snapshot snapshot = {options_.driver->stats(), Cluster(),
                                options_.history->BusyShares()};
  if (options_.certificate_not_after != nullptr) {
    if (const std::optional<absl::Time> end = options_.certificate_not_after()) {
      snapshot.certificate_expires = *end - absl::Now();
    }
  }
  response.body = options_.metrics->Render(snapshot);
  return response;
}

HttpResponse DashboardService::CancelJob(const HttpRequest& request) const {
  uint64_t job_id = 0;
  if (!absl::SimpleAtoi(request.path_parameters.at(0), &job_id)) {
    return ErrorResponse(
        absl::NotFoundError(absl::StrCat("no job \"", request.path_parameters.at(0), "\"")));
  }
  const absl::Status cancelled = options_.cancel(job_id);
  if (!cancelled.ok()) return ErrorResponse(cancelled);
  HttpResponse response;
  response.body = JsonText({{"id", job_id}, {"cancelled", true}});
  return response;
}

}  // namespace caravan
