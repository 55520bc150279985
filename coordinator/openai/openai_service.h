#ifndef CARAVAN_COORDINATOR_OPENAI_OPENAI_SERVICE_H_
#define CARAVAN_COORDINATOR_OPENAI_OPENAI_SERVICE_H_

// The endpoints that OpenAI's clients call, and a few of their kind: /v1/chat/completions,
// /v1/completions, /v1/models, /tokenize, /detokenize, /health. docs/api.md describes them.

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "coordinator/http/http_message.h"
#include "coordinator/http/responder.h"
#include "coordinator/http/router.h"
#include "coordinator/openai/generation_request.h"
#include "coordinator/openai/request_worker.h"
#include "coordinator/pipeline_driver.h"

namespace caravan {

/// Thread-safe. What it is given must outlive it, and it the HTTP server.
class OpenAiService {
 public:
  struct Options {
    ServedModel model;
    /// As PipelineDriver::Submit.
    std::function<absl::StatusOr<std::unique_ptr<JobHandle>>(JobSpec)> submit;
    /// OK when a full pipeline serves. Errors: Unavailable - none does, and why.
    std::function<absl::Status()> check_serving;
  };

  explicit OpenAiService(Options options) : options_(std::move(options)) {}

  /// Adds the routes. The service must outlive the router.
  void AddRoutes(Router& router);

  const ServedModel& model() const { return options_.model; }

  /// Requests that are still being read are dropped. Idempotent.
  void Stop() { worker_.Stop(); }

 private:
  using Reader = std::function<void(const HttpRequest&, const std::shared_ptr<Responder>&)>;
  /// A handler that runs `read` here for a small body and on the worker for a large one.
  HttpHandler Reading(Reader read);

  absl::Status StartGeneration(GenerationApi api, const HttpRequest& request,
                               const std::shared_ptr<Responder>& responder);

  const Options options_;
  RequestWorker worker_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_OPENAI_SERVICE_H_
