#include "coordinator/batch/batch.h"

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace caravan {

const char* BatchStatusName(BatchStatus status) {
  switch (status) {
    case BatchStatus::kValidating:
      return "validating";
    case BatchStatus::kFailed:
      return "failed";
    case BatchStatus::kInProgress:
      return "in_progress";
    case BatchStatus::kCompleted:
      return "completed";
    case BatchStatus::kCancelling:
      return "cancelling";
    case BatchStatus::kCancelled:
      return "cancelled";
  }
  return "";
}

bool HasEnded(BatchStatus status) {
  return status == BatchStatus::kFailed || status == BatchStatus::kCompleted ||
         status == BatchStatus::kCancelled;
}

int64_t UnixNow() { return absl::ToUnixSeconds(absl::Now()); }

}  // namespace caravan
