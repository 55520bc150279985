#ifndef CARAVAN_MODEL_STORED_MODEL_COST_H_
#define CARAVAN_MODEL_STORED_MODEL_COST_H_

// What a model that lies here costs: model/layer_cost.h, with errors for people.

#include "absl/status/statusor.h"
#include "model/layer_cost.h"
#include "model/stored_model.h"

namespace caravan {

/// ComputeModelCost of the whole model.
/// Errors: InvalidArgument - as ComputeModelCost, or `model` is a pack of some layers alone. Each
///         names the model's path.
absl::StatusOr<ModelCost> CostOfStoredModel(const StoredModel& model, bool speculate = false);

}  // namespace caravan

#endif  // CARAVAN_MODEL_STORED_MODEL_COST_H_
