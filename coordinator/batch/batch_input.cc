#include "coordinator/batch/batch_input.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr size_t kMaxCustomIdBytes = 512;
// A parser's complaint quotes what it has read.
constexpr size_t kMaxMessageBytes = 400;

BatchError FieldError(const char* code, const char* field, absl::string_view what) {
  return {code, absl::StrCat(field, ": ", what), field, std::nullopt};
}

}  // namespace

std::optional<GenerationApi> BatchApi(absl::string_view endpoint) {
  if (endpoint == "/v1/chat/completions") return GenerationApi::kChat;
  if (endpoint == "/v1/completions") return GenerationApi::kCompletion;
  return std::nullopt;
}

std::variant<BatchLine, BatchError> ParseBatchLine(absl::string_view text,
                                                   absl::string_view endpoint) {
  if (text.size() > kMaxBatchLineBytes) {
    return BatchError{"line_too_long",
                      absl::StrCat("the line is longer than ", kMaxBatchLineBytes, " bytes"),
                      std::nullopt, std::nullopt};
  }
  const absl::StatusOr<json> parsed = ParseJson(text, "the line");
  if (!parsed.ok()) {
    return BatchError{"invalid_json_line",
                      std::string(parsed.status().message().substr(0, kMaxMessageBytes)),
                      std::nullopt, std::nullopt};
  }
  if (!parsed->is_object()) {
    return BatchError{"invalid_json_line", "the line must be a JSON object", std::nullopt,
                      std::nullopt};
  }
  for (const char* field : {"custom_id", "method", "url", "body"}) {
    const auto value = parsed->find(field);
    if (value == parsed->end() || value->is_null()) {
      return FieldError("missing_required_parameter", field, "is missing");
    }
    if (std::string(field) == "body" ? !value->is_object() : !value->is_string()) {
      return FieldError("invalid_type", field,
                        value->is_string() ? "must be an object" : "is of a wrong type");
    }
  }
  const std::string custom_id = (*parsed)["custom_id"];
  if (custom_id.empty() || custom_id.size() > kMaxCustomIdBytes) {
    return FieldError("invalid_custom_id", "custom_id",
                      absl::StrCat("must have 1 to ", kMaxCustomIdBytes, " bytes"));
  }
  if ((*parsed)["method"] != "POST") {
    return FieldError("invalid_method", "method", "must be \"POST\"");
  }
  if ((*parsed)["url"] != std::string(endpoint)) {
    return FieldError("invalid_url", "url",
                      absl::StrCat("must be the batch's endpoint, \"", endpoint, "\""));
  }
  BatchLine line;
  line.custom_id = custom_id;
  line.body = (*parsed)["body"].dump();
  return line;
}

absl::StatusOr<std::optional<std::string>> LineReader::Next() {
  std::string line;
  bool begun = false;
  bool ended = false;
  while (!ended) {
    if (begin_ == read_.size()) {
      CARAVAN_ASSIGN_OR_RETURN(read_, store_->ReadFile(file_id_, cursor_));
      begin_ = 0;
      if (read_.empty()) break;  // the last line needs no line break
    }
    begun = true;
    const size_t line_break = read_.find('\n', begin_);
    ended = line_break != std::string::npos;
    const size_t end = ended ? line_break : read_.size();
    line.append(read_, begin_, std::min(end - begin_, kMaxBatchLineBytes + 2 - line.size()));
    begin_ = ended ? end + 1 : end;
  }
  if (!begun) return std::optional<std::string>();
  ++line_number_;
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return std::optional<std::string>(std::move(line));
}

}  // namespace caravan
