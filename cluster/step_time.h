#ifndef CARAVAN_CLUSTER_STEP_TIME_H_
#define CARAVAN_CLUSTER_STEP_TIME_H_

// How long a step takes that decodes one token of each of some sequences, or computes a chunk of a
// prompt, predicted from a model's costs and what boxes can do: the one table of times. Pure
// functions.
//
// A layer's rows touch some of its experts. Those in memory are there; the others come from the
// disk, each once for all rows. What a step touches:
//
//   touched = E (1 - (1 - k/E)^rows)     of E experts, if rows choose k of them evenly
//   in memory = touched * HitRate(share of all experts that fit, what all jobs' rows touch / E)
//
// Reads and computation overlap (docs/architecture.md, "The expert store"): a scan, where more than
// half of a layer is touched, reads ahead over layers; otherwise each layer's reads run beside its
// experts only. Real routing is uneven, so that more rows share an expert than this says.

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/dtype.h"
#include "cluster/box.h"
#include "model/layer_cost.h"
#include "model/model_config.h"

namespace caravan {

/// Different ones among `num_experts` that `rows` rows choose, `chosen` each and all alike.
double TouchedExperts(double num_experts, double chosen, double rows);

/// Of uses of experts, those that a cache with a place for `share` of all experts is expected to
/// hit, where a token of every job touches `touched_share` of a layer's together. Measured points
/// of docs/performance.md, "Which experts stay" (lfu): for one row the table's, between them
/// straight lines; the more is touched, the nearer to `share`, as a fixed set stays: share + (one
/// row's - share) * (1 - touched_share)^1.5, which is within 5 points of what 4, 16 and 32 rows hit
/// there.
double HitRate(double share, double touched_share);

/// What bounds a step: the disk, where it reads for as long as all that computes takes; else of all
/// that computes, reading memory (VRAM too) or arithmetic, whichever takes longer.
enum class Bottleneck { kDisk, kMemory, kArithmetic };
const char* BottleneckName(Bottleneck bottleneck);

/// One stage's part of a step. Seconds.
struct StageTime {
  int64_t expert_slots = 0;   // in VRAM and memory
  double expert_share = 0;    // of the stage's experts that these hold
  double bytes_read = 0;      // from the disk
  double read_seconds = 0;    // for these
  double always_seconds = 0;  // attention and whatever every token passes
  double expert_seconds = 0;  // the experts' arithmetic and memory
  double seconds = 0;         // with what overlaps
  Bottleneck bottleneck = Bottleneck::kDisk;
};

struct PipelineTime {
  double tokens_per_second = 0;  // of all jobs together
  double rows = 0;               // of a micro-batch
  StageTime slowest;             // of the stages, for one micro-batch
};

struct DecodeLoad {
  int64_t jobs = 1;            // that decode at once
  int64_t context_tokens = 0;  // of each
  DType kv_dtype = DType::kF16;
};

/// Of a stage, for a micro-batch of `rows` out of the load's jobs, or for more rows than jobs, of
/// prompts. VRAM and memory take what is always active first, then the KV cache of all jobs, then
/// experts.
/// Errors: FailedPrecondition - the box has not the memory for that and the experts of one row;
///         says how much is missing.
absl::StatusOr<StageTime> PredictStage(const ModelConfig& config, const LayerCost& stage,
                                       const Box& box, const DecodeLoad& load, double rows);

/// Of a pipeline of `num_boxes` such boxes with as many layers each as nearly as can be. The jobs
/// are split into as many micro-batches as there are stages (docs/architecture.md), if there are
/// so many jobs.
/// REQUIRES: 1 <= num_boxes <= layers; jobs >= 1.
/// Errors: as PredictStage, which names the stage.
absl::StatusOr<PipelineTime> PredictPipeline(const ModelConfig& config, const ModelCost& cost,
                                             const Box& box, int num_boxes, const DecodeLoad& load);

/// Chunks of prompts, which read each expert once for all of their rows.
struct PromptTime {
  int64_t chunk_tokens = 0;
  double tokens_per_second = 0;  // while every stage has a chunk; of a prompt alone, a stage's part
  StageTime slowest;             // of the stages, for one chunk
};

inline constexpr int64_t kLeastPromptChunk = 64;
inline constexpr int64_t kMostPromptChunk = 8192;

/// Of the pipeline of PredictPipeline, with the smallest chunk in which its slowest stage computes
/// for as long as it reads disk and memory: smaller ones leave its cores idle, larger ones gain
/// nothing, take memory from experts, and hold other jobs up. Among powers of two from
/// kLeastPromptChunk to kMostPromptChunk, the last one that the context and memory have room for
/// where reading stays the bottleneck.
/// REQUIRES, Errors: as PredictPipeline.
absl::StatusOr<PromptTime> PredictPrompts(const ModelConfig& config, const ModelCost& cost,
                                          const Box& box, int num_boxes, const DecodeLoad& load);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_STEP_TIME_H_
