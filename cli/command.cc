#include "cli/command.h"

#include <cstdio>

namespace caravan {

int ReportStatus(const absl::Status& status) {
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "caravan: %s\n", std::string(status.message()).c_str());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kOutOfRange:
      return kExitUsage;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kExitUnavailable;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    default:
      return kExitFailed;
  }
}

void AddConfigOption(CLI::App& command) {
  command.set_config("--config", "", "Read options from FILE: lines of option = value (TOML)");
}

}  // namespace caravan
