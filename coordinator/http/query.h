#ifndef CARAVAN_COORDINATOR_HTTP_QUERY_H_
#define CARAVAN_COORDINATOR_HTTP_QUERY_H_

// What follows the ? of a request's target: NAME=VALUE&NAME=VALUE...

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// Names and values, decoded; + stands for a blank. A name without = has the value "".
/// Errors: InvalidArgument - a name that comes twice, or a malformed %.
absl::StatusOr<std::map<std::string, std::string>> ParseQuery(absl::string_view query);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_QUERY_H_
