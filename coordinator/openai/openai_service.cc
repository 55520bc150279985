#include "coordinator/openai/openai_service.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/http/http_error.h"
#include "coordinator/openai/generation.h"
#include "coordinator/openai/generation_session.h"
#include "coordinator/openai/request_fields.h"
#include "coordinator/openai/tokenize.h"

namespace caravan {
namespace {

using nlohmann::json;

// Up to this a body is read in about a millisecond.
constexpr size_t kSmallBodyBytes = size_t{16} << 10;

json ModelJson(const ServedModel& model) {
  return {{"id", model.name},
          {"object", "model"},
          {"created", model.created},
          {"owned_by", "caravan"},
          {"max_model_len", model.context_tokens}};
}

}  // namespace

void OpenAiService::AddRoutes(Router& router) {
  const auto generate = [this](GenerationApi api) {
    return Reading(
        [this, api](const HttpRequest& request, const std::shared_ptr<Responder>& responder) {
          const absl::Status started = StartGeneration(api, request, responder);
          if (!started.ok()) responder->Send(ErrorResponse(started));
        });
  };
  router.Handle("POST", "/v1/chat/completions", generate(GenerationApi::kChat));
  router.Handle("POST", "/v1/completions", generate(GenerationApi::kCompletion));

  const auto convert = [this](absl::StatusOr<json> (*function)(const json&, const ServedModel&)) {
    return Reading(
        [this, function](const HttpRequest& request, const std::shared_ptr<Responder>& responder) {
          absl::StatusOr<json> body = ParseRequestBody(request.body);
          responder->Send(JsonResponse(body.ok() ? function(*body, options_.model) : body));
        });
  };
  router.Handle("POST", "/tokenize", convert(&Tokenize));
  router.Handle("POST", "/detokenize", convert(&Detokenize));

  router.Handle("GET", "/v1/models", [this](HttpRequest, std::shared_ptr<Responder> responder) {
    responder->Send(
        JsonResponse(json{{"object", "list"}, {"data", json::array({ModelJson(options_.model)})}}));
  });
  router.Handle("GET", "/v1/models/{...}",
                [this](HttpRequest request, std::shared_ptr<Responder> responder) {
                  const absl::Status known =
                      CheckModelName({{"model", request.path_parameters[0]}}, options_.model);
                  responder->Send(known.ok() ? JsonResponse(ModelJson(options_.model))
                                             : ErrorResponse(known));
                });
  router.Handle("GET", "/health",
                [this](HttpRequest, std::shared_ptr<Responder> responder) {
                  const absl::Status serving = options_.check_serving();
                  responder->Send(serving.ok() ? JsonResponse(json{{"status", "ok"}})
                                               : ErrorResponse(serving));
                },
                {.open = true});
}

HttpHandler OpenAiService::Reading(Reader read) {
  return [this, read = std::move(read)](HttpRequest request, std::shared_ptr<Responder> responder) {
    if (request.body.size() <= kSmallBodyBytes) return read(request, responder);
    const bool posted =
        worker_.Post([read, request = std::move(request), responder] { read(request, responder); });
    if (!posted) {
      responder->Send(
          ErrorResponse(absl::ResourceExhaustedError("too many large requests wait to be read")));
    }
  };
}

absl::Status OpenAiService::StartGeneration(GenerationApi api, const HttpRequest& request,
                                            const std::shared_ptr<Responder>& responder) {
  CARAVAN_ASSIGN_OR_RETURN(const json body, ParseRequestBody(request.body));
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<Generation> generation,
                           Generation::Create(api, body, options_.model));
  CARAVAN_RETURN_IF_ERROR(options_.check_serving());
  std::vector<std::unique_ptr<JobHandle>> jobs;
  for (JobSpec& spec : generation->TakeSpecs()) {
    absl::StatusOr<std::unique_ptr<JobHandle>> job = options_.submit(std::move(spec));
    // The jobs before it are cancelled on leaving.
    if (!job.ok()) return job.status();
    jobs.push_back(*std::move(job));
  }
  GenerationSession::Start(responder, std::move(generation), std::move(jobs));
  return absl::OkStatus();
}

}  // namespace caravan
