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
//   in memory = touched * HitRate(share of all experts that are kept, what all jobs' rows touch /
//   E)
//
// What computes is bound by reading and by arithmetic, and takes the sum of both: a core unpacks a
// tile of weights, which it waits for, and then multiplies; on a card short kernels follow each
// other (docs/performance.md, "Pipelines as they were foretold", "A stage on a card").
//
// A box with a card holds what is always active and the KV cache there, as far as there is room,
// and experts in what is left. Those that are not there are computed by the CPU where they lie, or
// copied to the card, so that both are done at the same time; both read the box's memory.
//
// Reads and computation overlap (docs/architecture.md, "The expert store"): a scan, where more than
// half of a layer is touched, reads ahead over layers; otherwise each layer's reads run beside its
// experts only. Real routing is uneven, so that more rows share an expert than this says.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/dtype.h"
#include "cluster/box.h"
#include "model/layer_cost.h"
#include "model/model_config.h"
#include "model/stage_spec.h"

namespace caravan {

/// Different ones among `num_experts` that `rows` rows choose, `chosen` each and all alike.
double TouchedExperts(double num_experts, double chosen, double rows);

/// How rows spread over a layer's experts.
enum class Routing {
  kSkewed,  // as real models choose: some experts far more often than others, and the same ones in
            // a row (docs/performance.md, "Which experts stay")
  kEven,    // all alike and at random, as random weights do
};

/// Of uses of experts, those that a cache with a place for `share` of all experts is expected to
/// hit, where a token of every job touches `touched_share` of a layer's together. Measured points
/// of docs/performance.md, "Which experts stay" (lfu): for one row the table's, between them
/// straight lines; the more is touched, the nearer to `share`, as a fixed set stays: share + (one
/// row's - share) * (1 - touched_share)^1.5, which is within 5 points of what 4, 16 and 32 rows hit
/// there. With even routing no expert is worth more than another, and `share` is hit.
double HitRate(double share, double touched_share, Routing routing = Routing::kSkewed);

/// What bounds a step: the disk, where it reads for as long as all that computes takes; else of all
/// that computes, reading memory (VRAM too) or arithmetic, whichever takes longer.
/// Of a stage in a pipeline the network, where its activations take longer than all that.
enum class Bottleneck { kDisk, kMemory, kArithmetic, kNetwork };
const char* BottleneckName(Bottleneck bottleneck);

/// Where a stage's bytes lie. Fixed: what is always active, and the KV cache.
struct StageTiers {
  int64_t card_fixed_bytes = 0;
  int64_t card_expert_bytes = 0;
  int64_t memory_fixed_bytes = 0;
  int64_t memory_expert_bytes = 0;
  int64_t disk_bytes = 0;  // all weights, copies of what is above among them
};

/// One stage's part of a step. Seconds.
struct StageTime {
  int64_t expert_slots = 0;   // in VRAM and memory
  double expert_share = 0;    // of the stage's experts that these keep
  double bytes_read = 0;      // from the disk
  double read_seconds = 0;    // for these
  double always_seconds = 0;  // attention and whatever every token passes
  double expert_seconds = 0;  // the experts' arithmetic and memory
  double seconds = 0;         // with what overlaps
  double send_seconds = 0;    // of its activations to the next stage of a pipeline, beside that
  Bottleneck bottleneck = Bottleneck::kDisk;
  StageTiers tiers;

  /// After which it can begin the next micro-batch.
  double busy_seconds() const { return std::max(seconds, send_seconds); }
};

struct PipelineTime {
  double tokens_per_second = 0;   // of all jobs that decode together
  double seconds_per_token = 0;   // of each of them
  double rows = 0;                // of a micro-batch
  double round_seconds = 0;       // of a micro-batch through all stages
  std::vector<StageTime> stages;  // for one micro-batch
  StageTime slowest;              // of these
};

struct DecodeLoad {
  int64_t jobs = 1;            // whose KV caches there is room for
  int64_t context_tokens = 0;  // of each
  DType kv_dtype = DType::kF16;
  int64_t decoding = 0;  // of these jobs, that decode at once; 0: all
  int64_t attended = 0;  // tokens that a row looks back on; 0: all of its context
  Routing routing = Routing::kSkewed;
  double sampled_share = 1;  // of a step's rows, those that a token is sampled after

  int64_t decoding_jobs() const { return decoding > 0 ? decoding : jobs; }
  int64_t attended_tokens() const { return attended > 0 ? attended : context_tokens; }
};

/// What a box has too little of for a stage.
struct StageLack {
  int64_t memory_bytes = 0;  // VRAM and memory together, for what is fixed and the experts of a row
  int64_t disk_bytes = 0;    // for its weights

  int64_t bytes() const { return memory_bytes + disk_bytes; }
};
StageLack LackOf(const LayerCost& stage, const Box& box, const DecodeLoad& load);

/// Of a stage, for a micro-batch of `rows` out of the load's jobs, or for more rows than jobs, of
/// prompts. VRAM and memory take what is always active first, then the KV cache of all jobs, then
/// experts.
/// Errors: FailedPrecondition - the box has not the memory for that and the experts of one row, or
///         not the disk for its weights; says how much is missing.
absl::StatusOr<StageTime> PredictStage(const ModelConfig& config, const LayerCost& stage,
                                       const Box& box, const DecodeLoad& load, double rows);

/// A stage and the box that holds it.
struct BoxStage {
  const Box* box = nullptr;
  StageSpec stage;
  std::optional<DType> kv_dtype = std::nullopt;  // of its KV cache; nullopt: the load's
};

/// Into how many micro-batches the load's jobs are split: as many as there are stages
/// (docs/architecture.md), or fewer, as a step takes jobs / stages of them, rounded up.
int64_t MicroBatches(int num_stages, const DecodeLoad& load);

/// Of `rows` hidden states from one box to another. Such messages of a link do not overlap.
double SendSeconds(const ModelConfig& config, const Box& from, const Box& to, double rows);

/// Of a message that has just left, until it is there. (What was sampled comes home to the
/// coordinator with the latency of the last stage's network.)
double HopLatency(const Box& from, const Box& to);

/// The box of such a stage without the memory that steps of so many rows take of it.
Box WithoutSteps(const ModelConfig& config, const StageSpec& stage, int num_stages, int64_t rows,
                 Box box);

/// Of a pipeline of such stages, which follow each other.
/// REQUIRES: `stages` are those of a whole model, in order; jobs >= 1.
/// Errors: as PredictStage, which names the stage.
absl::StatusOr<PipelineTime> PredictPipeline(const ModelConfig& config, const ModelCost& cost,
                                             absl::Span<const BoxStage> stages,
                                             const DecodeLoad& load);

/// Chunks of prompts, which read each expert once for all of their rows.
struct PromptTime {
  int64_t chunk_tokens = 0;
  double tokens_per_second = 0;  // while every stage has a chunk; of a prompt alone, a stage's part
  StageTime slowest;             // of the stages, for one chunk
};

inline constexpr int64_t kLeastPromptChunk = 64;
inline constexpr int64_t kMostPromptChunk = 8192;

/// Of the pipeline of PredictPipeline, with the smallest chunk than which none gives more tokens/s
/// by a tenth: about the one in which its slowest stage computes for as long as it reads disk and
/// memory. Smaller ones leave cores idle, larger ones take memory from experts and hold other jobs
/// up. Among powers of two from kLeastPromptChunk to kMostPromptChunk that the context and memory
/// have room for. (So a faster disk may let a smaller one do, which gives up to a tenth less.)
/// REQUIRES, Errors: as PredictPipeline.
absl::StatusOr<PromptTime> PredictPrompts(const ModelConfig& config, const ModelCost& cost,
                                          absl::Span<const BoxStage> stages,
                                          const DecodeLoad& load);

/// Seconds from when a prompt of so many tokens, alone, is there until its first token is: its
/// chunks follow each other through the stages, at the pace of the slowest.
/// REQUIRES, Errors: as PredictPipeline; chunk_tokens >= 1.
absl::StatusOr<double> PredictFirstToken(const ModelConfig& config, const ModelCost& cost,
                                         absl::Span<const BoxStage> stages, const DecodeLoad& load,
                                         int64_t prompt_tokens, int64_t chunk_tokens);

struct FirstToken {
  int64_t chunk_tokens = 0;
  double seconds = 0;
};

/// The same with the chunk with which it comes soonest, of those of PredictPrompts; where several
/// do, the smallest. So of the same stages it never comes later for more memory, a faster disk or a
/// faster network, as it may with the chunk that PredictPrompts chooses.
/// REQUIRES, Errors: as PredictPipeline; prompt_tokens >= 1.
absl::StatusOr<FirstToken> PredictSoonestFirstToken(const ModelConfig& config,
                                                    const ModelCost& cost,
                                                    absl::Span<const BoxStage> stages,
                                                    const DecodeLoad& load, int64_t prompt_tokens);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_STEP_TIME_H_
