#include "coordinator/openai/batch_json.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/openai/request_fields.h"

namespace caravan {
namespace {

using nlohmann::json;

// The only one that OpenAI has; here a batch has all the time that it needs.
constexpr char kCompletionWindow[] = "24h";

template <typename T>
json OrNull(const std::optional<T>& value) {
  return value.has_value() ? json(*value) : json(nullptr);
}

/// OpenAI's list of `items`, each of which has an id.
json ListJson(json items, bool has_more) {
  json first = nullptr;
  json last = nullptr;
  if (!items.empty()) {
    first = items.front()["id"];
    last = items.back()["id"];
  }
  return {{"object", "list"},
          {"data", std::move(items)},
          {"first_id", std::move(first)},
          {"last_id", std::move(last)},
          {"has_more", has_more}};
}

json ErrorsJson(const Batch& batch) {
  if (batch.errors.empty()) return nullptr;
  json data = json::array();
  for (const BatchError& error : batch.errors) {
    data.push_back({{"code", error.code},
                    {"message", error.message},
                    {"param", OrNull(error.param)},
                    {"line", OrNull(error.line)}});
  }
  return {{"object", "list"}, {"data", std::move(data)}};
}

absl::StatusOr<std::map<std::string, std::string>> ParseMetadata(const json& value) {
  std::map<std::string, std::string> metadata;
  if (value.is_null()) return metadata;
  if (!value.is_object()) return ParamError("metadata", "must be an object");
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) return ParamError(absl::StrCat("metadata.", key), "must be a string");
    metadata.emplace(key, text.get<std::string>());
  }
  return metadata;
}

}  // namespace

json FileJson(const FileObject& file) {
  return {{"id", file.id},
          {"object", "file"},
          {"bytes", file.bytes},
          {"created_at", file.created_at},
          {"filename", file.filename},
          {"purpose", file.purpose},
          {"status", "processed"}};
}

json FilePageJson(const BatchBook::FilePage& page) {
  json items = json::array();
  for (const FileObject& file : page.files) items.push_back(FileJson(file));
  return ListJson(std::move(items), page.has_more);
}

json DeletedFileJson(const std::string& id) {
  return {{"id", id}, {"object", "file"}, {"deleted", true}};
}

json BatchJson(const Batch& batch) {
  return {{"id", batch.id},
          {"object", "batch"},
          {"endpoint", batch.endpoint},
          {"errors", ErrorsJson(batch)},
          {"input_file_id", batch.input_file_id},
          {"completion_window", kCompletionWindow},
          {"status", BatchStatusName(batch.status)},
          {"output_file_id", OrNull(batch.output_file_id)},
          {"error_file_id", OrNull(batch.error_file_id)},
          {"created_at", batch.created_at},
          {"in_progress_at", OrNull(batch.in_progress_at)},
          {"expires_at", nullptr},
          {"finalizing_at", OrNull(batch.finalizing_at)},
          {"completed_at", OrNull(batch.completed_at)},
          {"failed_at", OrNull(batch.failed_at)},
          {"expired_at", nullptr},
          {"cancelling_at", OrNull(batch.cancelling_at)},
          {"cancelled_at", OrNull(batch.cancelled_at)},
          {"request_counts",
           {{"total", batch.counts.total},
            {"completed", batch.counts.completed},
            {"failed", batch.counts.failed}}},
          {"metadata", batch.metadata.empty() ? json(nullptr) : json(batch.metadata)}};
}

json BatchPageJson(const BatchBook::BatchPage& page) {
  json items = json::array();
  for (const Batch& batch : page.batches) items.push_back(BatchJson(batch));
  return ListJson(std::move(items), page.has_more);
}

absl::StatusOr<BatchBook::NewBatch> ParseNewBatch(const json& body) {
  CARAVAN_ASSIGN_OR_RETURN(const RequestFields fields, RequestFields::Of(body));
  BatchBook::NewBatch batch;
  CARAVAN_ASSIGN_OR_RETURN(batch.input_file_id, fields.String("input_file_id"));
  CARAVAN_ASSIGN_OR_RETURN(batch.endpoint, fields.String("endpoint"));
  CARAVAN_ASSIGN_OR_RETURN(const std::string window,
                           fields.String("completion_window", kCompletionWindow));
  if (window != kCompletionWindow) {
    return ParamError("completion_window", absl::StrCat("must be \"", kCompletionWindow, "\""));
  }
  if (fields.Has("output_expires_after")) {
    return ParamError("output_expires_after", "files do not expire here");
  }
  CARAVAN_ASSIGN_OR_RETURN(batch.metadata, ParseMetadata(fields.Value("metadata")));
  return batch;
}

}  // namespace caravan
