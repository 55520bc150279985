#ifndef CARAVAN_CLUSTER_PIPELINE_PLAN_H_
#define CARAVAN_CLUSTER_PIPELINE_PLAN_H_

// Which worker holds which stage. A value; made by PlanStages (cluster/planner.h).

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/int_math.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/step_time.h"
#include "cluster/worker_id.h"
#include "model/stage_spec.h"

namespace caravan {

/// Tokens a KV block, on every worker: small enough that a short sequence wastes little, large
/// enough that block tables stay short.
inline constexpr int64_t kKvBlockTokens = 64;

/// Tokens that the blocks for `tokens` hold.
constexpr int64_t WholeKvBlocks(int64_t tokens) { return RoundUp(tokens, kKvBlockTokens); }

struct StagePlan {
  WorkerId worker{};
  StageSpec stage;
  int64_t weight_bytes = 0;
  int64_t kv_bytes = 0;       // memory that the stage may take for its KV cache
  int64_t kv_disk_bytes = 0;  // and of its worker's disk
  int64_t kv_tokens = 0;      // that these hold
  // What it may take for routed experts, a multiple of their slot; 0: all are in memory.
  int64_t expert_bytes = 0;
};

/// What the table of times (cluster/step_time.h) says of a plan.
struct PlanForecast {
  int64_t jobs = 1;                           // longest sequences that its KV caches have room for
  double tokens_per_second = 0;               // while all of these decode
  double tokens_per_second_alone = 0;         // of one that decodes alone
  int slowest_stage = 0;                      // while all decode
  Bottleneck bottleneck = Bottleneck::kDisk;  // of that stage
};

struct PipelinePlan {
  uint64_t version = 0;                  // grows with every plan of a coordinator; 0: none
  std::vector<StagePlan> stages;         // in the order of the ring, no layer missing or twice
  std::optional<PlanForecast> forecast;  // of one that was made by times
};

v1::Stage ToProto(const StageSpec& stage);

/// Errors: InvalidArgument - no layers, or more than any model has.
absl::StatusOr<StageSpec> StageFromProto(const v1::Stage& stage);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_PIPELINE_PLAN_H_
