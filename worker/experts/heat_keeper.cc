#include "worker/experts/heat_keeper.h"

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/log.h"
#include "worker/experts/expert_heat.h"

namespace caravan {

HeatKeeper::HeatKeeper(Options options)
    : options_(std::move(options)), kept_at_(options_.clock->Now()), writer_("heat-writer", [this] {
        while (const std::optional<std::string> heat = queue_.Pop()) Write(*heat);
      }) {}

HeatKeeper::~HeatKeeper() { queue_.Close(); }

std::string HeatKeeper::PathOf(absl::string_view directory, const ExpertCache::Shape& shape) {
  return JoinPath(directory, absl::StrCat("expert-heat-", shape.first_layer, "-",
                                          shape.first_layer + shape.num_layers, ".json"));
}

void HeatKeeper::Load(ExpertCache& cache) const {
  const absl::Status status = LoadExpertHeat(options_.path, options_.model_fingerprint, cache);
  if (status.ok()) {
    LogInfo("expert_heat_loaded", {{"path", options_.path}});
  } else if (!absl::IsNotFound(status)) {
    LogWarning("expert_heat_skipped", {{"why", status.message()}});
  }
}

void HeatKeeper::AfterStep(const ExpertCache& cache, int64_t step) {
  const absl::Duration now = options_.clock->Now();
  if (now - kept_at_ < options_.interval || step == kept_step_) return;
  kept_at_ = now;
  if (queue_.TryPush(EncodeExpertHeat(options_.model_fingerprint, cache, step))) kept_step_ = step;
}

void HeatKeeper::Finish(const ExpertCache& cache, int64_t step) {
  queue_.Close();
  writer_.Join();
  if (step == std::exchange(kept_step_, step)) return;
  Write(EncodeExpertHeat(options_.model_fingerprint, cache, step));
}

void HeatKeeper::Write(absl::string_view heat) {
  const absl::Status status = WriteExpertHeat(options_.path, heat);
  // A disk that stays full is told of once.
  if (!std::exchange(failed_, !status.ok()) && !status.ok()) {
    LogWarning("expert_heat_not_kept", {{"why", status.message()}});
  }
}

}  // namespace caravan
