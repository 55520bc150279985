#include "coordinator/batch/batch_validation.h"

#include <algorithm>
#include <string>
#include <utility>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "coordinator/random_id.h"

namespace caravan {
namespace {

// Of one step: some milliseconds of work, one fsync.
constexpr size_t kLinesAStep = 500;
constexpr size_t kBytesAStep = size_t{1} << 20;

}  // namespace

absl::StatusOr<bool> BatchValidation::Step() {
  if (!std::exchange(cleared_, true)) CARAVAN_RETURN_IF_ERROR(store_->ClearLines(batch_.number));
  std::vector<BatchLine> lines;
  size_t bytes = 0;
  bool at_end = false;
  while (lines.size() < kLinesAStep && bytes < kBytesAStep) {
    const absl::StatusOr<std::optional<std::string>> text = reader_.Next();
    if (absl::IsNotFound(text.status())) {
      // It was deleted just before there was a batch of it.
      errors_.push_back(
          {"file_not_found", std::string(text.status().message()), std::nullopt, std::nullopt});
      at_end = true;
      break;
    }
    CARAVAN_RETURN_IF_ERROR(text.status());
    at_end = !text->has_value() || static_cast<int64_t>(errors_.size()) >= kMaxBatchErrors;
    if (at_end) break;
    bytes += (*text)->size() + 1;  // a blank line is work too
    if (absl::StripAsciiWhitespace(**text).empty()) continue;
    if (++num_lines_ > kMaxBatchLines) {
      errors_.push_back({"too_many_requests",
                         absl::StrCat("the file has more than ", kMaxBatchLines, " lines"),
                         std::nullopt, reader_.line_number()});
      at_end = true;
      break;
    }
    std::variant<BatchLine, BatchError> parsed = ParseBatchLine(**text, batch_.endpoint);
    if (auto* const error = std::get_if<BatchError>(&parsed)) {
      error->line = reader_.line_number();
      errors_.push_back(std::move(*error));
      continue;
    }
    BatchLine& line = lines.emplace_back(std::get<BatchLine>(std::move(parsed)));
    line.number = reader_.line_number();
    line.draw_seed = RandomNumber();
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<bool> added, store_->AddLines(batch_.number, lines));
  for (size_t i = 0; i < lines.size(); ++i) {
    if (added[i]) continue;
    errors_.push_back({"duplicate_custom_id",
                       absl::StrCat("custom_id: \"", lines[i].custom_id,
                                    "\" is that of an earlier line of the file"),
                       "custom_id", lines[i].number});
  }
  if (!at_end) return false;
  CARAVAN_RETURN_IF_ERROR(Finish());
  return true;
}

absl::Status BatchValidation::Finish() {
  const int64_t now = absl::ToUnixSeconds(absl::Now());
  if (num_lines_ == 0 && errors_.empty()) {
    errors_.push_back({"empty_file", "the input file has no lines", std::nullopt, std::nullopt});
  }
  if (errors_.empty()) return store_->BeginBatch(batch_.number, now);
  std::stable_sort(errors_.begin(), errors_.end(), [](const BatchError& a, const BatchError& b) {
    return a.line.value_or(0) < b.line.value_or(0);
  });
  if (static_cast<int64_t>(errors_.size()) > kMaxBatchErrors) errors_.resize(kMaxBatchErrors);
  return store_->FailBatch(batch_.number, errors_, now);
}

}  // namespace caravan
