#ifndef CARAVAN_CLI_BENCH_OFFLOAD_H_
#define CARAVAN_CLI_BENCH_OFFLOAD_H_

// Runs jobs over a model whose experts lie on a disk, and holds what they took against what the
// disk and the cores allow: caravan bench offload.

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/disk_gauge.h"
#include "cli/local_pipeline.h"
#include "cli/offload_bounds.h"
#include "model/stored_model.h"
#include "worker/experts/synthetic_routing.h"

namespace caravan {

struct OffloadLoad {
  int num_workers = 1;
  int jobs = 1;                // at once
  int64_t prompt_tokens = 1;   // of each job, random; the same in all rounds
  int64_t tokens_per_job = 1;  // of each reply
  int rounds = 1;
  uint64_t seed = 1;  // of prompts and sampling
  // How experts are chosen, but for num_layers and what is the model's or the load's; nullopt: by
  // the model's routers.
  std::optional<SyntheticRouting::Options> routing;
};

/// What one round did.
struct OffloadRound {
  int64_t tokens = 0;
  double seconds = 0;
  int64_t steps = 0;    // of the pipeline
  int64_t touched = 0;  // experts that a step of a layer chose, summed
  int64_t hits = 0;     // of them
  int64_t read_bytes = 0;
  double read_seconds = 0;  // with any read under way
  DiskGauge::Rate disk;     // before and after the round, on average
  OffloadBounds bounds;
};

struct OffloadResult {
  int64_t slots = 0;  // of all stages
  std::vector<OffloadRound> rounds;
};

/// `pipeline`: how the model is run, but for what `load` says; its context has room for a prompt
/// with its reply. Runs rounds until the slots are full, then load.rounds of them, and
/// asks `gauge` before and after each of these.
/// Errors: InvalidArgument - the budget holds all experts; OutOfRange - it has no room for the KV
/// cache of all jobs at once; as LocalPipeline::Create, JobHandle::Next and DiskGauge::Measure.
absl::StatusOr<OffloadResult> MeasureOffload(const StoredModel& model,
                                             LocalPipeline::Options pipeline,
                                             const OffloadLoad& load, DiskGauge& gauge);

}  // namespace caravan

#endif  // CARAVAN_CLI_BENCH_OFFLOAD_H_
