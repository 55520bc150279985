#include "cli/expert_probe.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/byte_size.h"
#include "base/status_macros.h"
#include "worker/experts/card_experts.h"
#include "worker/experts/expert_cost_file.h"

namespace caravan {
namespace {

// More than any cache of a CPU holds, of any model.
constexpr int64_t kHostExperts = 64;

}  // namespace

absl::StatusOr<ExpertProbe> ProbeExperts(const StoredModel& model, const ComputeDevice& device,
                                         int64_t max_rows) {
  const ModelConfig& config = model.config();
  if (!device.is_card()) {
    return absl::InvalidArgumentError("--device: experts are shared with a card; name one");
  }
  int layer = 0;
  while (layer < config.num_hidden_layers && !config.IsMoeLayer(layer)) ++layer;
  if (layer == config.num_hidden_layers) {
    return absl::InvalidArgumentError(absl::StrCat(model.path(), ": no layer has routed experts"));
  }
  const StageSpec spec = {layer, layer + 1, false, false, false};
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<ExpertFiles> files,
                           ExpertFiles::Open(config, spec, model));
  const int64_t k = config.router.num_experts_per_tok;
  CARAVAN_ASSIGN_OR_RETURN(
      const std::unique_ptr<ExpertStore> store,
      ExpertStore::Create(config, spec, model, std::max(kHostExperts, k) * files->max_run_bytes(),
                          {}));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> card,
                           device.MakeBackend(config, max_rows));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> cpu, device.MakeCpu());
  CardExperts::Options options;
  // Slots are rounded up by less than a page.
  options.budget_bytes =
      std::max<int64_t>(k, CardExperts::kLeastSlots) * (files->max_run_bytes() + 4096);
  options.max_rows = max_rows;
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<CardExperts> experts,
                           CardExperts::Create(config, *store, *card, *cpu, options));
  ExpertProbe probe;
  probe.device = device.Name();
  probe.expert_bytes = files->max_run_bytes();
  CARAVAN_ASSIGN_OR_RETURN(probe.costs, experts->MeasureCosts());
  return probe;
}

std::string ExpertProbeTable(const ExpertProbe& probe) {
  const ExpertCosts& costs = probe.costs;
  std::string table = absl::StrFormat(
      "an expert of %s, one of as many as a token chooses, in ms; %s\n"
      "its copy to the card takes %.3f; a visit of n rows takes %.3f + %.5f n beside its "
      "experts\n\n"
      "%8s%12s%12s%14s%12s\n",
      FormatByteSize(probe.expert_bytes), probe.device, 1e3 * costs.copy_seconds,
      1e3 * costs.visit_seconds, 1e3 * costs.visit_row_seconds, "rows", "on the CPU", "with copies",
      "a copy's then", "on the card");
  for (const ExpertCosts::Point& point : costs.points) {
    absl::StrAppendFormat(&table, "%8d%12.3f%12.3f%14.3f%12.3f\n", point.rows,
                          1e3 * point.cpu_seconds, 1e3 * point.cpu_beside_seconds,
                          1e3 * point.copy_beside_seconds, 1e3 * point.card_seconds);
  }
  return table;
}

nlohmann::json ExpertProbeJson(const ExpertProbe& probe) {
  nlohmann::json json = ExpertCostsJson(probe.costs);
  json["device"] = probe.device;
  json["expert_bytes"] = probe.expert_bytes;
  return json;
}

}  // namespace caravan
