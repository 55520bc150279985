#include "worker/experts/stage_trace.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "worker/experts/expert_files.h"
#include "worker/experts/routing_trace.h"

namespace caravan {

absl::StatusOr<std::unique_ptr<RoutingObserver>> RecordStage(const std::string& prefix,
                                                             uint64_t model_fingerprint,
                                                             const ModelConfig& config,
                                                             const StageSpec& stage) {
  const std::vector<int> layers = ExpertFiles::LayersOf(config, stage);
  if (layers.empty()) return nullptr;
  const int end = layers.back() + 1;
  const std::string path = absl::StrCat(prefix, "-", layers.front(), "-", end);
  CARAVAN_ASSIGN_OR_RETURN(
      std::unique_ptr<RoutingTraceWriter> writer,
      RoutingTraceWriter::Open(
          path, {.model_fingerprint = model_fingerprint,
                 .first_layer = layers.front(),
                 .num_layers = end - layers.front(),
                 .n_routed_experts = static_cast<int>(config.n_routed_experts),
                 .num_experts_per_tok = static_cast<int>(config.router.num_experts_per_tok)}));
  LogInfo("recording_routing", {{"path", path}});
  return writer;
}

}  // namespace caravan
