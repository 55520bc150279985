#ifndef CARAVAN_COORDINATOR_BATCH_BATCH_OUTPUT_H_
#define CARAVAN_COORDINATOR_BATCH_BATCH_OUTPUT_H_

// The lines of a batch's output file and error file:
//   {"id", "custom_id", "response": {"status_code", "request_id", "body"} | null,
//    "error": {"code", "message"} | null}

#include <string>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// With its line break, as all of them.
std::string CompletedLine(const std::string& custom_id, nlohmann::json reply);
/// For a line that could not be run. A Cancelled one was answered by nobody; any other status is
/// the answer. REQUIRES: !why.ok().
std::string FailedLine(const std::string& custom_id, const absl::Status& why);
/// For a line whose batch was cancelled before it had ended.
std::string CancelledLine(const std::string& custom_id);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_BATCH_BATCH_OUTPUT_H_
