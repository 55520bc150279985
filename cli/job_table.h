#ifndef CARAVAN_CLI_JOB_TABLE_H_
#define CARAVAN_CLI_JOB_TABLE_H_

// Jobs and batches as tables for people.

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "caravan/v1/batches.pb.h"
#include "caravan/v1/jobs.pb.h"

namespace caravan {

/// A line for each job, under a heading; "no jobs".
std::string FormatJobs(const v1::ListResponse& jobs);

/// A line for each batch, under a heading; "no batches". `now` gives their age.
std::string FormatBatches(const std::vector<v1::Batch>& batches, absl::Time now);

/// Such as "in progress".
std::string BatchStateName(v1::BatchState state);

/// Nothing of the batch changes any more.
bool HasEnded(const v1::Batch& batch);

}  // namespace caravan

#endif  // CARAVAN_CLI_JOB_TABLE_H_
