#include "cli/job_table.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace caravan {

std::string FormatJobs(const v1::ListResponse& jobs) {
  if (jobs.jobs().empty()) return "no jobs\n";
  constexpr char kRow[] = "%-6s  %-8s  %14s  %10s  %s\n";
  std::string text = absl::StrFormat(kRow, "JOB", "STATE", "PROMPT TOKENS", "GENERATED", "AGE");
  for (const v1::JobSummary& job : jobs.jobs()) {
    absl::StrAppend(
        &text,
        absl::StrFormat(kRow, absl::StrCat(job.job_id()),
                        job.state() == v1::JOB_STATE_RUNNING ? "running" : "queued",
                        absl::StrCat(job.prompt_tokens()), absl::StrCat(job.completion_tokens()),
                        absl::StrFormat("%.1f s", job.age_s())));
  }
  return text;
}

std::string FormatBatches(const std::vector<v1::Batch>& batches, absl::Time now) {
  if (batches.empty()) return "no batches\n";
  constexpr char kRow[] = "%-38s  %-11s  %-20s  %8s  %8s  %8s  %s\n";
  std::string text =
      absl::StrFormat(kRow, "BATCH", "STATE", "ENDPOINT", "LINES", "DONE", "FAILED", "AGE");
  for (const v1::Batch& batch : batches) {
    absl::StrAppend(
        &text,
        absl::StrFormat(kRow, batch.batch_id(), BatchStateName(batch.state()), batch.endpoint(),
                        batch.total_lines() == 0 ? "-" : absl::StrCat(batch.total_lines()),
                        absl::StrCat(batch.completed_lines()), absl::StrCat(batch.failed_lines()),
                        absl::FormatDuration(absl::Seconds(absl::ToInt64Seconds(
                            now - absl::FromUnixSeconds(batch.created_at_s()))))));
  }
  return text;
}

std::string BatchStateName(v1::BatchState state) {
  switch (state) {
    case v1::BATCH_STATE_VALIDATING:
      return "validating";
    case v1::BATCH_STATE_FAILED:
      return "failed";
    case v1::BATCH_STATE_IN_PROGRESS:
      return "in progress";
    case v1::BATCH_STATE_COMPLETED:
      return "completed";
    case v1::BATCH_STATE_CANCELLING:
      return "cancelling";
    case v1::BATCH_STATE_CANCELLED:
      return "cancelled";
    default:
      return "?";
  }
}

bool HasEnded(const v1::Batch& batch) {
  return batch.state() == v1::BATCH_STATE_FAILED || batch.state() == v1::BATCH_STATE_COMPLETED ||
         batch.state() == v1::BATCH_STATE_CANCELLED;
}

}  // namespace caravan
