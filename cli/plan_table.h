#ifndef CARAVAN_CLI_PLAN_TABLE_H_
#define CARAVAN_CLI_PLAN_TABLE_H_

// The cluster's state as a table for people.

#include <string>

#include "caravan/v1/cluster.pb.h"

namespace caravan {

/// What serves, and a line for each worker: its stage, memory and KV cache. Where there are cards,
/// also what has their memory, where experts were computed, and by what each hop goes.
std::string FormatStatus(const v1::GetStatusResponse& status);

}  // namespace caravan

#endif  // CARAVAN_CLI_PLAN_TABLE_H_
