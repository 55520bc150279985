#ifndef CARAVAN_COORDINATOR_DASHBOARD_JSON_H_
#define CARAVAN_COORDINATOR_DASHBOARD_JSON_H_

// What GET /dashboard/data answers. For the page of the same version alone, so not a public format.
//
//   {"model": "tiny-r1", "state": "serving", "serving": true, "plan_version": 3,
//    "boxes": [BOX...],     in order of the ring, then those without a stage
//    "jobs": {"running": 2, "queued": 5, "listed": [JOB...]},
//    "history": {"window_s": 300, "age_s": [...], "generated_tokens_per_s": [...],
//                "prompt_tokens_per_s": [...], "running_jobs": [...], "queued_jobs": [...],
//                "first_token_p50_s": [...], "first_token_p99_s": [...]}}   oldest first
//   BOX = {"worker_id": 1, "name": "box-a", "address": "10.0.0.1:7070", "device": "cpu",
//          "state": "spare" | "loading" | "ready", "loaded_share": 0.42,
//          "stage": {"first_layer": 0, "end_layer": 5, "embeds": true, "has_head": false} | null,
//          "tiers": [{"tier": "RAM", "total_bytes": 123,
//                     "parts": [{"what": "weights" | "KV in use" | "KV cached" | "KV free",
//                                "bytes": 12}...]}],
//          "busy_share": 0.7 | null}
//   JOB = {"id": 17, "state": "queued" | "running", "prompt_tokens": 12, "completion_tokens": 3,
//          "max_tokens": 100, "age_s": 1.5}

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "caravan/v1/cluster.pb.h"
#include "caravan/v1/jobs.pb.h"
#include "coordinator/load_history.h"
#include "coordinator/pipeline_stats.h"
#include "nlohmann/json.hpp"

namespace caravan {

struct DashboardInputs {
  std::string model;
  v1::GetStatusResponse cluster;
  PipelineStats pipeline;
  std::vector<v1::JobSummary> jobs;
  std::vector<LoadHistory::Sample> history;  // oldest first
  absl::Duration window;                     // how far back the history may reach
  absl::Duration now;                        // on the history's clock
};

/// Jobs that run and then those that wait, at most this many of them, are listed.
inline constexpr size_t kMaxListedJobs = 100;

nlohmann::json DashboardJson(const DashboardInputs& inputs);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_DASHBOARD_JSON_H_
