#ifndef CARAVAN_WORKER_EXPERTS_STAGE_TRACE_H_
#define CARAVAN_WORKER_EXPERTS_STAGE_TRACE_H_

// Recording what a stage's routers choose (routing_trace.h).

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "model/model_config.h"
#include "model/stage_spec.h"
#include "worker/experts/routing_observer.h"

namespace caravan {

/// Opens `prefix`-FIRST-END, where the stage's layers with experts are [FIRST, END): stages of
/// other layers have other files, so one prefix does for a worker that changes its stage and for
/// several in one process. Null: the stage has no such layers.
/// Errors: as RoutingTraceWriter::Open.
absl::StatusOr<std::unique_ptr<RoutingObserver>> RecordStage(const std::string& prefix,
                                                             uint64_t model_fingerprint,
                                                             const ModelConfig& config,
                                                             const StageSpec& stage);

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_STAGE_TRACE_H_
