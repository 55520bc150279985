#include "coordinator/batch/batch_output.h"

#include <utility>

#include "coordinator/http/http_error.h"
#include "coordinator/random_id.h"

namespace caravan {
namespace {

using nlohmann::json;

std::string Line(const std::string& custom_id, json response, json error) {
  return JsonText({{"id", RandomId("batch_req_")},
                   {"custom_id", custom_id},
                   {"response", std::move(response)},
                   {"error", std::move(error)}}) +
         "\n";
}

json Response(int status_code, json body) {
  return {
      {"status_code", status_code}, {"request_id", RandomId("req_")}, {"body", std::move(body)}};
}

std::string ErrorLine(const std::string& custom_id, const char* code, std::string message) {
  return Line(custom_id, nullptr, {{"code", code}, {"message", std::move(message)}});
}

}  // namespace

std::string CompletedLine(const std::string& custom_id, json reply) {
  return Line(custom_id, Response(200, std::move(reply)), nullptr);
}

std::string FailedLine(const std::string& custom_id, const absl::Status& why) {
  if (absl::IsCancelled(why)) {
    return ErrorLine(custom_id, "request_cancelled", std::string(why.message()));
  }
  return Line(custom_id, Response(HttpStatusOf(why), ErrorJson(why)), nullptr);
}

std::string CancelledLine(const std::string& custom_id) {
  return ErrorLine(custom_id, "batch_cancelled", "the batch was cancelled before this line ended");
}

}  // namespace caravan
