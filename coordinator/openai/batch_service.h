#ifndef CARAVAN_COORDINATOR_OPENAI_BATCH_SERVICE_H_
#define CARAVAN_COORDINATOR_OPENAI_BATCH_SERVICE_H_

// OpenAI's endpoints for bulk jobs: /v1/files and /v1/batches, with what lies below them.
// docs/api.md describes them.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "coordinator/batch/batch_book.h"
#include "coordinator/http/http_message.h"
#include "coordinator/http/responder.h"
#include "coordinator/http/router.h"
#include "coordinator/openai/request_worker.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// Thread-safe. Whatever waits for the disk runs on a thread of its own, batch-requests. The book
/// must outlive it, and it the HTTP server.
class BatchService {
 public:
  explicit BatchService(BatchBook* book) : book_(book), worker_("batch-requests") {}

  /// Adds the routes. The service must outlive the router.
  void AddRoutes(Router& router);

  /// Requests that wait are dropped. Idempotent.
  void Stop() { worker_.Stop(); }

 private:
  using Answer = std::function<absl::StatusOr<nlohmann::json>(const HttpRequest&)>;
  /// A handler that runs `answer` on the worker.
  HttpHandler OnWorker(Answer answer);

  void Upload(HttpRequest request, const std::shared_ptr<Responder>& responder);
  void Download(const HttpRequest& request, const std::shared_ptr<Responder>& responder);
  absl::StatusOr<nlohmann::json> ListFiles(const HttpRequest& request) const;
  absl::StatusOr<nlohmann::json> CreateBatch(const HttpRequest& request) const;
  absl::StatusOr<nlohmann::json> ListBatches(const HttpRequest& request) const;

  BatchBook* const book_;
  std::atomic<int64_t> uploads_bytes_{0};  // of bodies that wait for the disk
  RequestWorker worker_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_BATCH_SERVICE_H_
