#ifndef CARAVAN_COORDINATOR_STAGE_STATUS_H_
#define CARAVAN_COORDINATOR_STAGE_STATUS_H_

// A stage as people are told of it: what of it is where.

#include <cstdint>
#include <optional>

#include "base/dtype.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/pipeline_plan.h"
#include "model/layer_cost.h"

namespace caravan {

/// What a worker has said of the stage that it was told to load.
struct StageState {
  uint64_t loaded_bytes = 0;
  uint64_t load_bytes = 0;  // 0: not heard yet
  std::optional<v1::StageReady> ready;
};

/// Fills in what `worker`, whose KV cache is of kv_dtype, holds of the stage.
void DescribeStageOf(const ModelCost& model, const StagePlan& plan, const StageState& state,
                     DType kv_dtype, v1::WorkerStatus& worker);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_STAGE_STATUS_H_
