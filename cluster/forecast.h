#ifndef CARAVAN_CLUSTER_FORECAST_H_
#define CARAVAN_CLUSTER_FORECAST_H_

// All that is foretold of a model on some boxes, of the best plan for them. Pure functions.

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "cluster/box_planner.h"

namespace caravan {

struct ForecastLoad {
  DecodeLoad decode;
  PlanAim aim = PlanAim::kBulk;
  int64_t prompt_tokens = 1;  // of the prompt whose first token is waited for
};

struct Forecast {
  std::vector<BoxStage> stages;
  PipelineTime together;  // all jobs decode
  PipelineTime alone;     // one of them does
  // Where memory has room for the steps of the smallest chunk. Each with its own best chunk.
  std::optional<PromptTime> prompts;
  std::optional<FirstToken> first_token;  // of a prompt alone

  /// What the aim is about: of all jobs, or of the one.
  double TokensPerSecond(PlanAim aim) const {
    return aim == PlanAim::kBulk ? together.tokens_per_second : alone.tokens_per_second;
  }
};

/// Its stages point into `boxes`. Errors, REQUIRES: as PlanBoxes; prompt_tokens >= 1.
absl::StatusOr<Forecast> ForecastBoxes(const ModelConfig& config, const ModelCost& cost,
                                       absl::Span<const BoxCount> boxes, const ForecastLoad& load);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_FORECAST_H_
