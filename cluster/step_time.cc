#include "cluster/step_time.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/kv_rows.h"
#include "model/stage_spec.h"
#include "model/step_memory.h"

namespace caravan {
namespace {

/// What one device does in a part of a step.
struct Work {
  double bytes = 0;
  double multiply_adds = 0;            // by weights
  double attention_multiply_adds = 0;  // by the KV cache

  Work Part(double share) const {
    return {bytes * share, multiply_adds * share, attention_multiply_adds * share};
  }
};

/// A second.
struct Device {
  double bytes = 0;
  double multiply_adds = 0;
  double attention_multiply_adds = 0;
};

Device CpuOf(const Box& box) {
  return {box.memory.read_bytes, box.cpu.multiply_adds, box.cpu.attention_multiply_adds};
}
Device CardOf(const Box& box) {
  return {box.card.read_bytes, box.card.multiply_adds, box.card.multiply_adds};
}

/// Seconds of both, which overlap: what takes longer counts.
struct Computing {
  double memory = 0;
  double arithmetic = 0;

  double seconds() const { return std::max(memory, arithmetic); }
};

/// Nothing takes no time, on a device that is not there too.
Computing TimeOf(const Work& work, const Device& device) {
  const auto over = [](double amount, double rate) { return amount == 0 ? 0 : amount / rate; };
  return {over(work.bytes, device.bytes),
          over(work.multiply_adds, device.multiply_adds) +
              over(work.attention_multiply_adds, device.attention_multiply_adds)};
}

/// Where a stage lies in a box.
struct Placement {
  int64_t expert_bytes = 0;   // of each
  int64_t expert_slots = 0;   // in VRAM and memory
  int64_t card_slots = 0;     // of these, in VRAM
  double always_on_card = 0;  // share of what is always active, and of the KV cache
};

/// Errors: as PredictStage.
absl::StatusOr<Placement> Place(const LayerCost& stage, const Box& box, const DecodeLoad& load) {
  Placement placed;
  if (stage.num_experts > 0) placed.expert_bytes = stage.expert_bytes / stage.num_experts;
  const int64_t kv_bytes =
      load.jobs * load.context_tokens * KvBytes(load.kv_dtype, stage.kv_values_per_token);
  const int64_t fixed = stage.always_active_bytes() + kv_bytes;
  const int64_t room = box.card.all_bytes() + box.memory.bytes - fixed;
  const int64_t least = stage.least_expert_slots() * placed.expert_bytes;
  if (room < least) {
    return absl::FailedPreconditionError(absl::StrCat(
        FormatByteSize(stage.always_active_bytes()), " of weights that are always active, ",
        FormatByteSize(kv_bytes), " of KV cache and the experts of one row lack ",
        FormatByteSize(least - room), " of memory on a box \"", box.name, "\""));
  }
  if (fixed > 0) {
    placed.always_on_card =
        std::min(1.0, static_cast<double>(box.card.all_bytes()) / static_cast<double>(fixed));
  }
  if (placed.expert_bytes > 0) {
    placed.expert_slots = std::min(stage.num_experts, room / placed.expert_bytes);
    placed.card_slots =
        std::min(placed.expert_slots,
                 std::max<int64_t>(0, box.card.all_bytes() - fixed) / placed.expert_bytes);
  }
  return placed;
}

/// A row's multiply-adds by the experts that it chooses, of all layers.
double ChosenMultiplyAdds(const ModelConfig& config, double expert_layers, double chosen) {
  const double expert_weights =
      3.0 * static_cast<double>(config.hidden_size * config.moe_intermediate_size);
  return expert_layers * chosen * expert_weights;
}

/// Scores and sums of one row over its context, in the latent space (kernels/backend.h).
double AttentionMultiplyAdds(const MlaShape& mla, double kv_values, double context_tokens) {
  const double layers = kv_values / static_cast<double>(mla.kv_width());
  return layers * static_cast<double>(mla.num_heads) * context_tokens *
         static_cast<double>(mla.kv_width() + mla.kv_lora_rank);
}

}  // namespace

double TouchedExperts(double num_experts, double chosen, double rows) {
  if (num_experts == 0) return 0;
  return num_experts * (1 - std::pow(1 - chosen / num_experts, rows));
}

double HitRate(double share, double touched_share) {
  constexpr std::pair<double, double> kMeasured[] = {{0, 0},       {0.03, 0.24}, {0.10, 0.44},
                                                     {0.25, 0.67}, {0.50, 0.81}, {1, 1}};
  share = std::clamp(share, 0.0, 1.0);
  const auto* const above = std::find_if(std::begin(kMeasured) + 1, std::end(kMeasured) - 1,
                                         [&](const auto& point) { return share <= point.first; });
  const auto* const below = above - 1;
  const double part = (share - below->first) / (above->first - below->first);
  const double one_row = below->second + part * (above->second - below->second);
  return share + (one_row - share) * std::pow(1 - touched_share, 1.5);
}

const char* BottleneckName(Bottleneck bottleneck) {
  switch (bottleneck) {
    case Bottleneck::kDisk:
      return "disk";
    case Bottleneck::kMemory:
      return "memory";
    case Bottleneck::kArithmetic:
      return "arithmetic";
  }
  return "";
}

absl::StatusOr<StageTime> PredictStage(const ModelConfig& config, const LayerCost& stage,
                                       const Box& box, const DecodeLoad& load, double rows) {
  CARAVAN_ASSIGN_OR_RETURN(const Placement placed, Place(stage, box, load));
  const double per_layer = static_cast<double>(config.n_routed_experts);
  const double chosen = static_cast<double>(stage.experts_per_token);
  const double num_experts = static_cast<double>(stage.num_experts);
  const double expert_layers = num_experts == 0 ? 0 : num_experts / per_layer;
  const double expert_bytes = static_cast<double>(placed.expert_bytes);

  StageTime time;
  time.expert_slots = placed.expert_slots;
  time.expert_share = num_experts == 0 ? 1 : static_cast<double>(placed.expert_slots) / num_experts;

  // What is read.
  const double touched = TouchedExperts(per_layer, chosen, rows);
  const bool is_scan = 2 * touched > per_layer;
  // Between two tokens of a job the cache meets those of all others, or of a whole chunk.
  const double met =
      TouchedExperts(per_layer, chosen, std::max(rows, static_cast<double>(load.jobs)));
  const double hits = per_layer == 0 ? 1 : HitRate(time.expert_share, met / per_layer);
  time.bytes_read = expert_layers * touched * (1 - hits) * expert_bytes;
  time.read_seconds = time.bytes_read == 0 ? 0 : time.bytes_read / box.disk.read_bytes;

  // What every row passes, the part on the card after the other.
  const double chosen_multiply_adds = ChosenMultiplyAdds(config, expert_layers, chosen);
  Work always;
  always.bytes = static_cast<double>(stage.active_bytes_per_token) -
                 expert_layers * chosen * expert_bytes +
                 rows * static_cast<double>(load.context_tokens *
                                            KvBytes(load.kv_dtype, stage.kv_values_per_token));
  always.multiply_adds =
      rows * (static_cast<double>(stage.flops_per_token) / 2 - chosen_multiply_adds);
  always.attention_multiply_adds =
      rows * AttentionMultiplyAdds(config.Mla(), static_cast<double>(stage.kv_values_per_token),
                                   static_cast<double>(load.context_tokens));
  const Computing on_cpu = TimeOf(always.Part(1 - placed.always_on_card), CpuOf(box));
  const Computing on_card = TimeOf(always.Part(placed.always_on_card), CardOf(box));
  time.always_seconds = on_cpu.seconds() + on_card.seconds();

  // The experts: those on the card beside the others.
  const Work experts = {expert_layers * touched * expert_bytes, rows * chosen_multiply_adds, 0};
  const double card_share = hits * static_cast<double>(placed.card_slots) /
                            static_cast<double>(std::max<int64_t>(1, placed.expert_slots));
  const Computing experts_on_cpu = TimeOf(experts.Part(1 - card_share), CpuOf(box));
  const Computing experts_on_card = TimeOf(experts.Part(card_share), CardOf(box));
  const Computing& slower =
      experts_on_cpu.seconds() >= experts_on_card.seconds() ? experts_on_cpu : experts_on_card;
  time.expert_seconds = slower.seconds();

  time.seconds = is_scan ? std::max(time.read_seconds, time.always_seconds + time.expert_seconds)
                         : time.always_seconds + std::max(time.read_seconds, time.expert_seconds);
  const double memory = on_cpu.memory + on_card.memory + slower.memory;
  const double arithmetic = on_cpu.arithmetic + on_card.arithmetic + slower.arithmetic;
  if (time.read_seconds >= time.always_seconds + time.expert_seconds) {
    time.bottleneck = Bottleneck::kDisk;
  } else {
    time.bottleneck = memory >= arithmetic ? Bottleneck::kMemory : Bottleneck::kArithmetic;
  }
  return time;
}

namespace {

struct Round {
  double seconds = 0;  // of all stages, one after the other, and the hops between them
  StageTime slowest;
};

/// A step of `rows` through the pipeline of PredictPipeline. step_rows: what memory of steps is
/// taken from the boxes for; 0: theirs is what is left beside it.
absl::StatusOr<Round> PredictRound(const ModelConfig& config, const ModelCost& cost, const Box& box,
                                   int num_boxes, const DecodeLoad& load, double rows,
                                   int64_t step_rows) {
  const int layers = static_cast<int>(cost.layers.size());
  CARAVAN_CHECK(num_boxes >= 1 && num_boxes <= layers && load.jobs >= 1);
  Round round;
  round.seconds = num_boxes > 1 ? num_boxes * box.network.latency_seconds : 0;
  for (int i = 0; i < num_boxes; ++i) {
    StageSpec stage;
    stage.first_layer = layers * i / num_boxes;
    stage.end_layer = layers * (i + 1) / num_boxes;
    stage.embeds = i == 0;
    stage.has_head = i + 1 == num_boxes;
    Box left = box;
    if (step_rows > 0) {
      left.memory.bytes -= ComputeStepMemory(config, step_rows).Of(stage, num_boxes);
    }
    absl::StatusOr<StageTime> part = PredictStage(config, cost.Of(stage), left, load, rows);
    if (!part.ok()) return Annotate(part.status(), DescribeStage(stage));
    round.seconds += part->seconds;
    if (part->seconds > round.slowest.seconds) round.slowest = *part;
  }
  return round;
}

}  // namespace

absl::StatusOr<PipelineTime> PredictPipeline(const ModelConfig& config, const ModelCost& cost,
                                             const Box& box, int num_boxes,
                                             const DecodeLoad& load) {
  const auto micro_batches = static_cast<double>(std::min<int64_t>(num_boxes, load.jobs));
  PipelineTime time;
  time.rows = static_cast<double>(load.jobs) / micro_batches;
  CARAVAN_ASSIGN_OR_RETURN(const Round round,
                           PredictRound(config, cost, box, num_boxes, load, time.rows, 0));
  time.slowest = round.slowest;
  // A micro-batch comes round after all stages, and each stage serves all micro-batches in turn.
  const double cycle = std::max(round.seconds, micro_batches * time.slowest.seconds);
  time.tokens_per_second = static_cast<double>(load.jobs) / cycle;
  return time;
}

absl::StatusOr<PromptTime> PredictPrompts(const ModelConfig& config, const ModelCost& cost,
                                          const Box& box, int num_boxes, const DecodeLoad& load) {
  PromptTime time;
  const int64_t longest = std::clamp(load.context_tokens, kLeastPromptChunk, kMostPromptChunk);
  for (int64_t chunk = kLeastPromptChunk; chunk <= longest; chunk *= 2) {
    const absl::StatusOr<Round> round =
        PredictRound(config, cost, box, num_boxes, load, static_cast<double>(chunk), chunk);
    // A smaller one fits.
    if (!round.ok() && time.chunk_tokens > 0) break;
    CARAVAN_RETURN_IF_ERROR(round.status());
    time.chunk_tokens = chunk;
    time.slowest = round->slowest;
    time.tokens_per_second = static_cast<double>(chunk) / round->slowest.seconds;
    if (time.slowest.bottleneck == Bottleneck::kArithmetic) break;
  }
  return time;
}

}  // namespace caravan
