#ifndef CARAVAN_COORDINATOR_JOIN_CHECK_H_
#define CARAVAN_COORDINATOR_JOIN_CHECK_H_

// Whether a worker can be of use to this cluster at all, whatever the plan.

#include "absl/status/status.h"
#include "caravan/v1/cluster.pb.h"
#include "model/model_config.h"

namespace caravan {

/// `model`, `config`: the coordinator's.
/// Errors: FailedPrecondition - the worker is of another version of the protocol, has another
///         model, or a format of KV cache that the model cannot have.
absl::Status CheckCanJoin(const v1::Registration& registration, const v1::ModelReference& model,
                          const ModelConfig& config);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_JOIN_CHECK_H_
