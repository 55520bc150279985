#ifndef CARAVAN_CLI_EXPERT_PROBE_H_
#define CARAVAN_CLI_EXPERT_PROBE_H_

// What a model's routed experts cost on this box: the table by which a card's stage splits them.

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "model/stored_model.h"
#include "nlohmann/json.hpp"
#include "worker/compute_device.h"
#include "worker/experts/expert_costs.h"

namespace caravan {

struct ExpertProbe {
  std::string device;
  int64_t expert_bytes = 0;
  ExpertCosts costs;
};

/// Of experts of the model's first layer that has them, for up to max_rows rows; takes a few
/// seconds. Errors: InvalidArgument - the device is no card, or the model has no routed experts; as
///         ExpertStore::Create, CardExperts::Create and MeasureCosts.
absl::StatusOr<ExpertProbe> ProbeExperts(const StoredModel& model, const ComputeDevice& device,
                                         int64_t max_rows);

/// A line a number of rows.
std::string ExpertProbeTable(const ExpertProbe& probe);
nlohmann::json ExpertProbeJson(const ExpertProbe& probe);

}  // namespace caravan

#endif  // CARAVAN_CLI_EXPERT_PROBE_H_
