#include "model/stored_model_cost.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace caravan {

absl::StatusOr<ModelCost> CostOfStoredModel(const StoredModel& model, bool speculate) {
  if (model.is_partial()) {
    return absl::InvalidArgumentError(
        absl::StrCat(model.path(), ": is a pack of some layers alone (--layers), not of a model"));
  }
  absl::StatusOr<ModelCost> cost = ComputeModelCost(model.config(), model, speculate);
  if (!cost.ok()) return Annotate(cost.status(), model.path());
  return cost;
}

}  // namespace caravan
