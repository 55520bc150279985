#ifndef CARAVAN_COORDINATOR_BOX_SIMULATION_H_
#define CARAVAN_COORDINATOR_BOX_SIMULATION_H_

// Boxes as pipeline_simulation takes them: with the times of cluster/step_time.h.

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "cluster/step_time.h"
#include "coordinator/pipeline_simulation.h"
#include "model/layer_cost.h"
#include "model/model_config.h"

namespace caravan {

/// A pipeline of `stages`, with KV caches for the load's jobs, whose steps carry up to
/// `prefill_chunk` rows. What a row attends to is counted in blocks of KV, so that times can be
/// remembered. All that is given is borrowed.
/// Errors: as PredictStage. REQUIRES: as PredictPipeline; prefill_chunk >= 1.
absl::StatusOr<SimulatedPipeline> SimulateBoxes(const ModelConfig& config, const ModelCost& cost,
                                                absl::Span<const BoxStage> stages,
                                                const DecodeLoad& load, int64_t prefill_chunk);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_BOX_SIMULATION_H_
