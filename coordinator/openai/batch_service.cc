#include "coordinator/openai/batch_service.h"

#include <map>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "coordinator/http/http_error.h"
#include "coordinator/http/query.h"
#include "coordinator/openai/batch_json.h"
#include "coordinator/openai/file_download.h"
#include "coordinator/openai/file_upload.h"
#include "coordinator/openai/request_fields.h"

namespace caravan {
namespace {

using nlohmann::json;

// Of uploads that wait for the disk together: a few of the largest.
constexpr int64_t kMaxWaitingUploadBytes = 3 * kMaxUploadBytes;

// OpenAI's pages.
constexpr int64_t kMaxFilesPage = 10'000;
constexpr int64_t kMaxBatchesPage = 100;
constexpr int64_t kDefaultBatchesPage = 20;

HttpResponse BusyResponse() {
  return ErrorResponse(absl::ResourceExhaustedError("too many requests wait for the disk"));
}

/// The parameters of a list's request.
class PageQuery {
 public:
  static absl::StatusOr<PageQuery> Parse(const HttpRequest& request) {
    CARAVAN_ASSIGN_OR_RETURN(auto fields, ParseQuery(request.query));
    return PageQuery(std::move(fields));
  }

  /// Empty: not given.
  std::string Text(const std::string& name) const {
    const auto it = fields_.find(name);
    return it == fields_.end() ? "" : it->second;
  }

  absl::StatusOr<int64_t> Limit(int64_t fallback, int64_t max) const {
    const std::string text = Text("limit");
    if (text.empty()) return fallback;
    int64_t limit = 0;
    if (!absl::SimpleAtoi(text, &limit) || limit < 1 || limit > max) {
      return ParamError("limit", absl::StrCat("must be an integer from 1 to ", max));
    }
    return limit;
  }

  /// Whether the oldest come first.
  absl::StatusOr<bool> Ascending() const {
    const std::string order = Text("order");
    if (order != "" && order != "asc" && order != "desc") {
      return ParamError("order", "must be \"asc\" or \"desc\"");
    }
    return order == "asc";
  }

 private:
  explicit PageQuery(std::map<std::string, std::string> fields) : fields_(std::move(fields)) {}

  std::map<std::string, std::string> fields_;
};

}  // namespace

void BatchService::AddRoutes(Router& router) {
  const auto id = [](const HttpRequest& request) { return request.path_parameters[0]; };

  router.Handle("POST", "/v1/files",
                [this](HttpRequest request, std::shared_ptr<Responder> responder) {
                  Upload(std::move(request), responder);
                },
                {.max_body_bytes = kMaxUploadBytes});
  router.Handle("GET", "/v1/files",
                OnWorker([this](const HttpRequest& request) { return ListFiles(request); }));
  router.Handle("GET", "/v1/files/{}",
                OnWorker([this, id](const HttpRequest& request) -> absl::StatusOr<json> {
                  CARAVAN_ASSIGN_OR_RETURN(const FileObject file, book_->GetFile(id(request)));
                  return FileJson(file);
                }));
  router.Handle("GET", "/v1/files/{}/content",
                [this](HttpRequest request, std::shared_ptr<Responder> responder) {
                  Download(request, responder);
                });
  router.Handle("DELETE", "/v1/files/{}",
                OnWorker([this, id](const HttpRequest& request) -> absl::StatusOr<json> {
                  CARAVAN_RETURN_IF_ERROR(book_->DeleteFile(id(request)));
                  return DeletedFileJson(id(request));
                }));

  router.Handle("POST", "/v1/batches",
                OnWorker([this](const HttpRequest& request) { return CreateBatch(request); }));
  router.Handle("GET", "/v1/batches",
                OnWorker([this](const HttpRequest& request) { return ListBatches(request); }));
  router.Handle("GET", "/v1/batches/{}",
                OnWorker([this, id](const HttpRequest& request) -> absl::StatusOr<json> {
                  CARAVAN_ASSIGN_OR_RETURN(const Batch batch, book_->GetBatch(id(request)));
                  return BatchJson(batch);
                }));
  router.Handle("POST", "/v1/batches/{}/cancel",
                OnWorker([this, id](const HttpRequest& request) -> absl::StatusOr<json> {
                  CARAVAN_ASSIGN_OR_RETURN(const Batch batch, book_->CancelBatch(id(request)));
                  return BatchJson(batch);
                }));
}

HttpHandler BatchService::OnWorker(Answer answer) {
  return [this, answer = std::move(answer)](HttpRequest request,
                                            std::shared_ptr<Responder> responder) {
    const bool posted = worker_.Post([answer, request = std::move(request), responder] {
      responder->Send(JsonResponse(answer(request)));
    });
    if (!posted) responder->Send(BusyResponse());
  };
}

void BatchService::Upload(HttpRequest request, const std::shared_ptr<Responder>& responder) {
  const auto bytes = static_cast<int64_t>(request.body.size());
  // Counted until the task goes, done or dropped.
  const std::shared_ptr<void> waiting(nullptr, [this, bytes](void*) { uploads_bytes_ -= bytes; });
  const bool fits = (uploads_bytes_ += bytes) <= kMaxWaitingUploadBytes;
  const bool posted = fits && worker_.Post([this, waiting, request = std::move(request),
                                            responder] {
    const auto add = [&]() -> absl::StatusOr<json> {
      CARAVAN_ASSIGN_OR_RETURN(const FileUpload upload, ParseFileUpload(request));
      CARAVAN_ASSIGN_OR_RETURN(const FileObject file, book_->AddFile(upload.file, upload.content));
      return FileJson(file);
    };
    responder->Send(JsonResponse(add()));
  });
  if (!posted) responder->Send(BusyResponse());
}

void BatchService::Download(const HttpRequest& request,
                            const std::shared_ptr<Responder>& responder) {
  const std::string& id = request.path_parameters[0];
  if (request.method != "HEAD") return FileDownload::Start(responder, book_, &worker_, id);
  const bool posted = worker_.Post([this, id, responder] {
    const absl::StatusOr<FileObject> file = book_->GetFile(id);
    if (!file.ok()) return responder->Send(ErrorResponse(file.status()));
    responder->StartStream({200, "application/octet-stream", "", {}});
    responder->Finish();
  });
  if (!posted) responder->Send(BusyResponse());
}

absl::StatusOr<json> BatchService::ListFiles(const HttpRequest& request) const {
  CARAVAN_ASSIGN_OR_RETURN(const PageQuery query, PageQuery::Parse(request));
  BatchBook::FileQuery files;
  files.after = query.Text("after");
  files.purpose = query.Text("purpose");
  CARAVAN_ASSIGN_OR_RETURN(files.limit, query.Limit(kMaxFilesPage, kMaxFilesPage));
  CARAVAN_ASSIGN_OR_RETURN(files.ascending, query.Ascending());
  CARAVAN_ASSIGN_OR_RETURN(const BatchBook::FilePage page, book_->ListFiles(files));
  return FilePageJson(page);
}

absl::StatusOr<json> BatchService::CreateBatch(const HttpRequest& request) const {
  CARAVAN_ASSIGN_OR_RETURN(const json body, ParseRequestBody(request.body));
  CARAVAN_ASSIGN_OR_RETURN(const BatchBook::NewBatch batch, ParseNewBatch(body));
  CARAVAN_ASSIGN_OR_RETURN(const Batch created, book_->CreateBatch(batch));
  return BatchJson(created);
}

absl::StatusOr<json> BatchService::ListBatches(const HttpRequest& request) const {
  CARAVAN_ASSIGN_OR_RETURN(const PageQuery query, PageQuery::Parse(request));
  CARAVAN_ASSIGN_OR_RETURN(const int64_t limit, query.Limit(kDefaultBatchesPage, kMaxBatchesPage));
  CARAVAN_ASSIGN_OR_RETURN(const BatchBook::BatchPage page,
                           book_->ListBatches(query.Text("after"), limit));
  return BatchPageJson(page);
}

}  // namespace caravan
