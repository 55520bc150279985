#ifndef CARAVAN_CLI_MEASURED_PIPELINES_H_
#define CARAVAN_CLI_MEASURED_PIPELINES_H_

// Runs of jobs over pipelines of real processes, with all that it takes to foretell them: what
// `caravan bench plan` writes, and what tests hold the predictions to (tests/data/pipelines.json).
// As JSON:
//
//   file     = { "format": "caravan-pipelines", "version": 1, "machine": text, "model": model,
//                "boxes": { id: box, ... }, "runs": [ run, ... ] }
//   model    = { "config": a config.json, "experts": format, "dense": format,
//                "weight_bytes": number }
//   box      = as in cluster/box_json.h; "boxes" has each once
//   run      = { "name": text, "boxes": [ id, ... ], "stages": [ [first_layer, end_layer], ... ],
//                "kv": format, "kv_jobs": number, "context_tokens": number,
//                "prefill_chunk": number, "jobs": [ [arrival_seconds, prompt_tokens, reply_tokens],
//                ... ], "measured": figures, "stage_busy_seconds": [ number, ... ],
//                "stage_read_bytes": [ number, ... ], "stage_expert_slots": [ number, ... ] }
//   figures  = { "tokens_per_second", "first_token_seconds", "seconds_per_token" }
//
// A run's weights are random, so its rows choose experts evenly.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "cluster/box.h"
#include "coordinator/pipeline_simulation.h"
#include "model/layer_cost.h"
#include "model/model_config.h"
#include "model/pack/pack_types.h"
#include "model/stage_spec.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// What people meet.
struct PipelineFigures {
  double tokens_per_second = 0;    // of all jobs together, from the first one's arrival to the end
  double first_token_seconds = 0;  // median of the jobs
  double seconds_per_token = 0;    // after the first: median of the jobs' means
};

struct PipelineRun {
  std::string name;
  std::vector<Box> boxes;         // of each stage
  std::vector<StageSpec> stages;  // of the whole model, in order
  DType kv_dtype = DType::kF16;
  int64_t kv_jobs = 1;  // for so many jobs' contexts the KV cache has room
  int64_t context_tokens = 0;
  int64_t prefill_chunk = 0;
  std::vector<SimulatedJob> jobs;
  PipelineFigures measured;
  std::vector<double> stage_busy_seconds;
  std::vector<double> stage_read_bytes;     // of experts, from the disk
  std::vector<int64_t> stage_expert_slots;  // 0: all experts are in memory
};

struct MeasuredPipelines {
  std::string machine;
  std::string config_json;
  PackTypes types;
  int64_t weight_bytes = 0;
  std::vector<PipelineRun> runs;
};

nlohmann::json PipelinesToJson(const MeasuredPipelines& measured);
/// `origin` names the text in errors. Errors: InvalidArgument - a field is missing or wrong.
absl::StatusOr<MeasuredPipelines> PipelinesFromJson(const nlohmann::json& json,
                                                    const std::string& origin);

/// The boxes of a table are equal parts of one machine, whose moods change from minute to minute,
/// and so do probes that last for a fraction of a second. What counts as a box's rate of reading
/// and computing is the mean of what its own probes said and of the median of all boxes in the
/// table.
MeasuredPipelines WithSteadyBoxes(MeasuredPipelines measured);

/// What the simulator and the plan's closed form say of a run.
struct ForetoldRun {
  PipelineFigures simulated;
  std::vector<double> stage_busy_seconds;  // simulated
  std::vector<int64_t> stage_expert_slots;
  // By PredictPipeline, for the run's jobs when all decode; by PredictFirstToken, of one job alone.
  double plan_seconds_per_token = 0;
  double plan_first_token_seconds = 0;  // 0: there are several jobs
};

/// Errors: as PredictStage.
absl::StatusOr<ForetoldRun> Foretell(const ModelConfig& config, const ModelCost& cost,
                                     const PipelineRun& run);

/// Rows of Markdown: measured, foretold and their ratio.
std::string PipelinesTable(const std::vector<PipelineRun>& runs,
                           const std::vector<ForetoldRun>& foretold);

}  // namespace caravan

#endif  // CARAVAN_CLI_MEASURED_PIPELINES_H_
