#include "cluster/forecast.h"

#include "base/status_macros.h"

namespace caravan {

absl::StatusOr<Forecast> ForecastBoxes(const ModelConfig& config, const ModelCost& cost,
                                       absl::Span<const BoxCount> boxes, const ForecastLoad& load) {
  Forecast forecast;
  CARAVAN_ASSIGN_OR_RETURN(forecast.stages, PlanBoxes(config, cost, boxes, load.decode, load.aim));
  CARAVAN_ASSIGN_OR_RETURN(forecast.together,
                           PredictPipeline(config, cost, forecast.stages, load.decode));
  DecodeLoad one = load.decode;
  one.decoding = 1;
  CARAVAN_ASSIGN_OR_RETURN(forecast.alone, PredictPipeline(config, cost, forecast.stages, one));
  const absl::StatusOr<PromptTime> prompts =
      PredictPrompts(config, cost, forecast.stages, load.decode);
  if (!prompts.ok()) return forecast;
  forecast.prompts = *prompts;
  CARAVAN_ASSIGN_OR_RETURN(
      forecast.first_token,
      PredictSoonestFirstToken(config, cost, forecast.stages, load.decode, load.prompt_tokens));
  return forecast;
}

}  // namespace caravan
